"""Papers' numbers joined to ours: only like with like."""

from bench.reports import published as papers
from fewstep.plugins import entries
from support.each import each
from support.synthetic import cell_rows, naive_rows

# Distillers without a published number on CIFAR-10, and why.
UNPUBLISHED = {
    "gd_stochastic": "quoted tables have the deterministic sampler alone",
    "lcm": "its paper is of latent diffusion, text to image",
    "sfd_v_one": "the paper's second stage follows sfd",
}


def test_the_papers_numbers_are_in_project_columns():
    table = papers.read_published()
    assert tuple(table.columns) == papers.FIELDS
    assert set(table["dataset"]) == {"CIFAR-10"}
    assert {"teacher", *entries("distiller")} - UNPUBLISHED.keys() == set(table["method"])
    training_free = {"euler", "heun", "dpm_2s", "dpmpp_3m", "unipc_bh2_3", "deis_tab", "ipndm_4", "ipndm_v_4"}
    assert training_free | {"amed", "amed_plugin", "gits", "gits_euler"} == set(table[table["method"] == "teacher"]["solver"])
    assert (table["value"] > 0).all()
    assert not table.duplicated().any()
    ddim = table[(table["paper"] == "2202.00512") & (table["solver"] == "euler") & (table["method"] == "teacher") & (table["nfe"] == 10)]
    assert ddim["value"].tolist() == [13.36]  # 8.23, printed by 2303.01469, is not the DDIM paper's own


def one_paper(dataset="CIFAR-10", **change):
    line = {"paper": "0000.00000", "table": "1", "dataset": dataset, "method": "teacher", "solver": "euler", "nfe": 5}
    line |= {"guidance_w": 0, "metric": "FID", "value": 40.0, "source_note": ""}
    line |= {"afs": "no", "grid": "polynomial", "end": "zero", "loss": "", "conditioning": "class-conditional"}
    return papers.pd.DataFrame([line | change])


def our_fid(**change):
    """A class-conditional cell of ours that agrees with `one_paper` in every setting."""
    return cell_rows(values={"fd_digits": 3.0, "fid": 42.5}, dataset="cifar10", **({"protocol": {"classes": 10}} | change))


def test_join_gives_a_difference_only_for_the_same_dataset_and_metric():
    ours = our_fid()
    (line,) = papers.join_published(ours, one_paper()).to_dict("records")
    assert (line["ours"], line["published"], line["difference"]) == (42.5, 40.0, 2.5)
    assert line["comparable"].startswith("in part: network and training differ; 2000 samples")
    (line,) = papers.join_published(cell_rows(values={"fd_digits": 3.0, "fid": None}), one_paper()).to_dict("records")
    assert papers.pd.isna(line["difference"])
    assert line["comparable"].startswith("no: dataset differs (digits, CIFAR-10); metric differs (fd_digits, FID: unavailable")
    for other in ({"nfe": 6}, {"solver": "heun"}, {"guidance_w": 1}, {"method": "pd"}):
        assert papers.join_published(ours, one_paper(**other)).empty


STUDENT = {"method": "cd", "solver": "consistency", "loss": "l2"}


@each(
    ("ours", "paper", "reason"),
    [
        ({}, {"afs": "yes"}, "afs differs (no, yes)"),
        ({"afs": True}, {}, "afs differs (yes, no)"),
        ({}, {"grid": "logsnr"}, "grid differs (polynomial, logsnr)"),
        ({"end": "sigma_min"}, {}, "end differs (sigma_min, zero)"),
        ({}, {"conditioning": "unconditional"}, "conditioning differs (class-conditional, unconditional)"),
        (STUDENT, STUDENT | {"loss": "lpips"}, "loss differs (l2, lpips)"),
        ({}, {"afs": "yes", "end": "sigma_min"}, "afs differs (no, yes); end differs (zero, sigma_min)"),
    ],
)
def test_a_setting_that_differs_is_named_and_leaves_no_difference(ours, paper, reason):
    (line,) = papers.join_published(our_fid(**ours), one_paper(**paper)).to_dict("records")
    assert papers.pd.isna(line["difference"])
    assert line["comparable"].startswith(f"no: {reason}; network and training differ")


@each(
    ("ours", "paper", "reason"),
    [
        ({}, {}, ""),
        (STUDENT, STUDENT, ""),
        ({}, {"afs": "", "grid": ""}, "afs, grid not stated by the paper; "),
        ({}, {"end": "", "conditioning": ""}, "end, conditioning not stated by the paper; "),
        (STUDENT, STUDENT | {"loss": ""}, "loss not stated by the paper; "),
        (STUDENT | {"loss": ""}, STUDENT, "loss not stated by us; "),
        ({"grid": ""}, {"end": ""}, "grid not stated by us; end not stated by the paper; "),
        ({"protocol": {"classes": 0}}, {}, "conditioning not stated by us; "),
        ({"protocol": {}}, {"conditioning": "unconditional"}, "conditioning not stated by us; "),
    ],
)
def test_a_setting_that_a_side_leaves_open_is_named(ours, paper, reason):
    (line,) = papers.join_published(our_fid(**ours), one_paper(**paper)).to_dict("records")
    assert line["difference"] == 2.5
    assert line["comparable"] == f"in part: network and training differ; {reason}2000 samples, papers use 50000"


def test_the_papers_settings_fit_their_nfe_and_notes():
    table = papers.read_published()
    values = {
        "afs": {"yes", "no", ""},
        "end": {"zero", "sigma_min", "zero_last", ""},
        "conditioning": {"unconditional", "class-conditional"},
    }
    values["grid"] = {"polynomial", "logsnr", "time_uniform", "cosine", "searched", ""}
    values["loss"] = {"l1", "l2", "lpips", "l1+lpips", "pseudo_huber", "norm", "l2+truncated_snr", ""}
    assert all(set(table[f]) == values[f] for f in papers.SETTINGS)
    assert all(line["source_note"].startswith(line["conditioning"]) for line in table.to_dict("records"))
    assert set(table[table["method"] == "teacher"]["loss"]) == {""}
    # Two evaluations per step: N steps to sigma_min take 2 N, the step to 0 takes one evaluation and makes 2 N - 1; AFS saves one.
    two = table[table["solver"].isin(["heun", "dpm_2s"]) & (table["afs"] != "") & (table["end"] != "")]
    assert len(two) == 22  # 4 with AFS and 4 without for each solver, 6 of heun to 0
    assert all(nfe % 2 == ((afs == "yes") + (end == "zero")) % 2 for nfe, afs, end in zip(two["nfe"], two["afs"], two["end"]))


def test_no_paper_of_the_shipped_file_is_compared_across_settings():
    ours = our_fid(solver="heun", nfe=5) + our_fid(**STUDENT, nfe=1, grid="polynomial", end="sigma_min")
    lines = papers.join_published(ours, papers.read_published()).to_dict("records")
    assert sorted(line["published"] for line in lines) == [3.55, 4.10, 5.88, 10.53, 97.67]
    assert all(papers.pd.isna(line["difference"]) for line in lines)  # every one is unconditional, ours is class-conditional
    reasons = {line["published"]: line["comparable"] for line in lines}
    assert reasons[97.67].startswith("no: afs differs (no, yes); end differs (zero, sigma_min); conditioning differs")
    assert "loss differs (l2, lpips)" in reasons[3.55]
    assert "loss" not in reasons[5.88]


def test_a_dataset_without_papers_is_one_line():
    assert papers.published_text(naive_rows(), one_paper()) == "No published numbers for digits: results/published.csv has CIFAR-10.\n"
    ours = cell_rows(values={"fd_digits": 3.0, "fid": 42.5}, dataset="cifar10")
    assert "0000.00000" in papers.published_text(ours, one_paper())
