"""Papers' numbers joined to ours: only like with like."""

import csv
import hashlib

from bench.reports import published as papers
from fewstep.assets import pieces
from fewstep.plugins import entries
from support.each import each
from support.synthetic import cell_rows, naive_rows

# Distillers without a published number on CIFAR-10, and why.
UNPUBLISHED = {
    "gd_stochastic": "quoted tables have the deterministic sampler alone",
    "lcm": "its paper is of latent diffusion, text to image",
    "sfd_v_one": "the paper's second stage follows sfd",
    **dict.fromkeys(
        ("codi", "pe_codi", "finetune", "controlnet", "t2i_adapter", "palette"), "tasks of pictures, of which no paper has CIFAR-10"
    ),
}


# Of each collection that the file is made of: how many lines, and the digest of what they print.
SHEETS = {
    "distillation": (587, "08519b62cf15b488"),
    "solvers_sfd": (579, "957ad6f64d9e56d0"),
    "gaps": (880, "81ea856957ffa743"),
}
PRINTED = ("table", "dataset", "resolution", "printed_method", "printed_variant", "nfe", "steps", "guidance_w", "metric", "value")


def as_written() -> list[dict[str, str]]:
    with open(papers.PUBLISHED, newline="") as file:
        return list(csv.DictReader(file))


def test_the_figures_are_those_of_the_collections():
    for sheet, (count, digest) in SHEETS.items():
        lines = ["|".join(line[f] for f in PRINTED) + "\n" for line in as_written() if line["sheet"] == sheet]
        assert (len(lines), hashlib.sha256("".join(lines).encode()).hexdigest()[:16]) == (count, digest), sheet
    assert {line["sheet"] for line in as_written()} == set(SHEETS)


def test_every_line_says_where_it_was_read_and_how_it_was_made():
    for line in as_written():
        assert all(line[f] for f in ("paper", "table", "dataset", "metric", "value", "source", "locator", "protocol")), line
        assert line["paper"] in line["locator"], line
        assert "recalled" not in " ".join(line.values()).lower(), line  # numbers from memory are no published ones
        assert "UNVERIFIED" not in line["note"], line
        assert "src=" not in " ".join(line.values()), line


def test_the_papers_numbers_are_in_project_columns():
    table = papers.read_published()
    assert tuple(table.columns) == papers.FIELDS
    ours = table[table["method"] != ""]
    assert set(ours["dataset"]) == {"CIFAR-10", "ImageNet", "FFHQ", "AFHQv2"}
    assert set(ours["metric"]) == {"FID"}
    cifar = ours[ours["dataset"] == "CIFAR-10"]
    assert {"teacher", *entries("distiller")} - UNPUBLISHED.keys() == set(cifar["method"])
    training_free = {"euler", "heun", "dpm_2s", "dpmpp_3m", "unipc_bh2_3", "deis_tab", "ipndm_4", "ipndm_v_4"}
    assert training_free | {"amed", "amed_plugin", "gits", "gits_euler"} == set(cifar[cifar["method"] == "teacher"]["solver"])
    assert (ours["value"] > 0).all()
    assert not ours.duplicated().any()
    ddim = cifar[(cifar["paper"] == "2202.00512") & (cifar["solver"] == "euler") & (cifar["method"] == "teacher") & (cifar["nfe"] == 10)]
    assert ddim["value"].tolist() == [13.36]  # 8.23, printed by 2303.01469, is not the DDIM paper's own


def test_a_suite_is_to_cover_the_three_tables_of_sfd():
    table = papers.read_published()
    own = {name: table[table["suites"] == name] for name in ("cifar", "sfd_ablation_cifar", "imagenet64")}
    assert {name: len(lines) for name, lines in own.items()} == {"cifar": 26, "sfd_ablation_cifar": 11, "imagenet64": 26}
    assert {name: set(lines["table"]) for name, lines in own.items()} == {
        "cifar": {"Table 2"},
        "sfd_ablation_cifar": {"Table 1 (ablation)"},
        "imagenet64": {"Table 3"},
    }
    assert all((lines["paper"] == "2409.19681").all() for lines in own.values())
    assert all((lines["method"] != "").all() for lines in own.values())


UNCOND, COND = "edm-cifar10-32x32-uncond-", "edm-cifar10-32x32-cond-"
SINGLE = {"end": "sigma_min", "afs": "no", "teacher": f"{UNCOND}vp"}
# What is known of lines: which they are, and what stands there. From EDM's and diff-sampler's texts and code.
KNOWN = [
    (("2206.00364", "Table 2", "unconditional", "VP config F"), {"teacher": f"{UNCOND}vp", "grid": "polynomial", "end": "zero"}),
    (("2206.00364", "Table 2", "class-conditional", "VP config F"), {"teacher": f"{COND}vp", "wrap": "none", "afs": "no"}),
    (("2206.00364", "Table 2", "unconditional", "VE config F"), {"teacher": f"{UNCOND}ve"}),
    (("2206.00364", "Table 2", "class-conditional", "VE config F"), {"teacher": f"{COND}ve"}),
    (("2206.00364", "Table 2", "", "VP config E"), {"teacher": "EDM trained without augmentation (config E), not published"}),
    (("zju-pi/diff-sampler", "", "unconditional", "Euler"), {**SINGLE, "grid": "polynomial", "wrap": "none"}),
    (("zju-pi/diff-sampler", "", "unconditional", "iPNDM"), {**SINGLE, "grid": "polynomial", "wrap": "none"}),
    (("zju-pi/diff-sampler", "", "unconditional", "DEIS-tAB3"), {**SINGLE, "grid": "time_uniform_rho2", "wrap": "none"}),
    (("zju-pi/diff-sampler", "", "unconditional", "DPM-Solver++(3M)"), {**SINGLE, "grid": "logsnr", "wrap": "dynamic_threshold"}),
    (("zju-pi/diff-sampler", "", "unconditional", "UniPC-3"), {**SINGLE, "grid": "logsnr", "wrap": "dynamic_threshold"}),
    (("2312.00094v2", "", "", "AMED-Solver"), {"grid": "time_uniform", "end": "sigma_min", "afs": "yes"}),
    (("2312.00094v2", "", "", "AMED-Plugin"), {"grid": "polynomial", "end": "sigma_min", "afs": "yes"}),
    (("2405.11326", "", "", "+GITS"), {"grid": "polynomial", "end": "sigma_min", "afs": "no"}),
    (("2409.19681", "Table 2", "", "DPM++(3M)"), {"wrap": "dynamic_threshold", "grid": "logsnr"}),
    (("2409.19681", "", "", "second-stage"), {"loss": "l1_lpips", "afs": "yes", "wrap": "none"}),
    (("2303.01469", "Table 1", "", "CT"), {"teacher": "none: NCSN++ from random weights"}),
    (("2303.01469", "Table 1", "", "DPM-Solver-2"), {"teacher": "another paper's VP network, quoted"}),
    (("2303.01469", "Table 2", "", "CD"), {"teacher": "edm_imagenet64_ema"}),
    (("2406.14548", "README table", "", "200k it"), {"variant": "", "teacher": f"{UNCOND}vp"}),
    (("2406.14548", "README table", "", "400k it"), {"variant": "400k"}),
]


@each(("line", "told"), KNOWN)
def test_teachers_grids_and_notes_are_those_of_the_sources(line, told):
    """They are ours: nothing that a collection prints."""
    paper, table, conditioning, printed = line
    found = [one for one in as_written() if one["method"] and one["paper"] == paper and table in ("", one["table"])]
    found = [one for one in found if conditioning in ("", one["conditioning"]) and one["resolution"] in ("32", "64")]
    found = [one for one in found if printed in (one["printed_method"], *one["printed_variant"].split("; "))] or [
        one for one in found if one["printed_variant"].startswith(printed) or one["printed_method"].startswith(printed)
    ]
    if told.get("teacher", "").startswith("edm-cifar10"):
        found = [one for one in found if one["dataset"] == "CIFAR-10"]
    assert found, line
    for one in found:
        assert {name: one[name] for name in told} == told, one


def test_a_teacher_is_a_published_checkpoint_or_words_and_notes_agree_with_what_is_printed():
    files = {file.name.partition(".")[0] for piece in pieces() for file in piece.files}
    for line in as_written():
        assert line["teacher"] in files or " " in line["teacher"] or not line["teacher"], line
        kind = next((kind for kind in ("VP", "VE") if line["printed_variant"].startswith(f"{kind} config")), "")
        assert not kind or not line["note"] or f"{kind} config" in line["note"], line
        named = {"uncond": "unconditional", "cond": "class-conditional"}.get(line["teacher"].rpartition("-32x32-")[2].partition("-")[0])
        assert named in (None, line["conditioning"]), line


PLAIN = dict.fromkeys(papers.FIELDS, "")


def one_paper(dataset="CIFAR-10", **change):
    line = {"paper": "0000.00000", "table": "1", "dataset": dataset, "method": "teacher", "solver": "euler", "nfe": 5}
    line |= {"guidance_w": 0, "metric": "FID", "value": 40.0, "protocol": "50,000 samples against the training set"}
    line |= {"afs": "no", "grid": "polynomial", "end": "zero", "wrap": "none", "loss": "", "conditioning": "class-conditional"}
    return papers.pd.DataFrame([PLAIN | line | change])


def our_fid(**change):
    """A class-conditional cell of ours that agrees with `one_paper` in every setting, of as many samples."""
    own = {"protocol": {"classes": 10}} | change
    rows = cell_rows(values={"fd_digits": 3.0, "fid": 42.5}, dataset="cifar10", **own)
    return [row | {"samples": change.get("samples", 50_000)} for row in rows]


def test_a_pair_has_both_numbers_and_their_difference():
    ours = our_fid()
    (line,) = papers.join_published(ours, one_paper()).to_dict("records")
    assert (line["ours"], line["published"], line["difference"]) == (42.5, 40.0, 2.5)
    assert line["comparable"] == "in part: network and training differ"
    for other in (
        {"nfe": 6},
        {"solver": "heun"},
        {"guidance_w": 1},
        {"method": "pd"},
        {"dataset": "FFHQ"},
        {"metric": "IS"},
        {"method": ""},
    ):
        assert papers.join_published(ours, one_paper(**other)).empty


def test_without_the_metric_there_is_no_difference():
    unmeasured = cell_rows(values={"fd_digits": 3.0, "fid": None}, dataset="cifar10")
    (line,) = papers.join_published(unmeasured, one_paper()).to_dict("records")
    assert papers.pd.isna(line["difference"])
    assert line["comparable"].startswith("no: metric differs (fd_digits, FID: unavailable")


STUDENT = {"method": "cd", "solver": "consistency", "loss": "l2"}


@each(
    ("ours", "paper", "reason"),
    [
        ({}, {"afs": "yes"}, "afs differs (no, yes)"),
        ({"afs": True}, {}, "afs differs (yes, no)"),
        ({}, {"grid": "logsnr"}, "grid differs (polynomial, logsnr)"),
        ({"end": "sigma_min"}, {}, "end differs (sigma_min, zero)"),
        ({}, {"conditioning": "unconditional"}, "conditioning differs (class-conditional, unconditional)"),
        ({"protocol": {"classes": 0}}, {}, "conditioning differs (unconditional, class-conditional)"),
        ({}, {"wrap": "dynamic_threshold"}, "wrap differs (none, dynamic_threshold)"),
        ({"wrap": "dynamic_threshold"}, {}, "wrap differs (dynamic_threshold, none)"),
        (STUDENT, STUDENT | {"loss": "lpips"}, "loss differs (l2, lpips)"),
        ({}, {"afs": "yes", "end": "sigma_min"}, "afs differs (no, yes); end differs (zero, sigma_min)"),
        ({"samples": 2500}, {}, "2,500 samples, papers use 50,000"),
    ],
)
def test_what_forbids_to_compare_is_named_beside_the_difference(ours, paper, reason):
    (line,) = papers.join_published(our_fid(**ours), one_paper(**paper)).to_dict("records")
    assert line["difference"] == 2.5
    assert line["comparable"] == f"no: {reason}; network and training differ"


CHECKPOINT, OTHER = "edm-cifar10-32x32-uncond-vp", "edm-cifar10-32x32-uncond-ve"
PINNED = next(file.sha256 for piece in pieces() for file in piece.files if file.name == f"{CHECKPOINT}.pkl")


@each(
    ("method", "weights", "sha256", "said"),
    [
        ({}, f"cache/{CHECKPOINT}.pkl", PINNED, "yes"),
        (STUDENT, f"cache/{CHECKPOINT}.pkl", PINNED, "in part: student trained here"),
        ({}, f"cache/{CHECKPOINT}.pkl", "", "in part: teacher by its name"),
        ({}, f"cache/{CHECKPOINT}.pkl", "0123", f"no: teacher differs (another file of the name {CHECKPOINT})"),
        ({}, "cifar10_small", PINNED, f"no: teacher differs (cifar10_small, {CHECKPOINT})"),
        ({}, "", "", f"no: teacher differs (cifar10, {CHECKPOINT})"),
    ],
)
def test_a_table_says_where_the_teacher_is_not_the_paper_s(method, weights, sha256, said):
    told = {"classes": 10, "weights_sha256": sha256}
    ours = [row | {"config": {"model": {"weights": weights}}} for row in our_fid(**method, protocol=told)]
    (line,) = papers.join_published(ours, one_paper(**method, teacher=CHECKPOINT)).to_dict("records")
    assert line["comparable"] == said
    assert line["published_teacher"] == CHECKPOINT


def test_a_digest_that_nobody_publishes_leaves_the_teacher_to_its_name():
    ours = [row | {"config": {"model": {"weights": f"{OTHER}.pkl"}}} for row in our_fid(protocol={"classes": 10, "weights_sha256": "0123"})]
    (line,) = papers.join_published(ours, one_paper(teacher=OTHER)).to_dict("records")
    assert line["comparable"] == "in part: teacher by its name"


ONE, THREE = (f"50,000 samples against the training set; {runs}" for runs in ("one run, seeds 0 to 49,999", "least of three runs"))
BOTH = {"fid": 42.5, "fid_published": 41.0, "fid_published_min3": 40.5}


def published_rows(values, samples=50_000, noise="edm", seed=0):
    """Rows of one cell under the papers' protocol, of the least of three runs with as many in each."""
    found = cell_rows(values=values, dataset="cifar10", protocol={"classes": 10, "weights_sha256": PINNED})
    for row in found:
        row |= {"samples": samples, "config": {"model": {"weights": f"{CHECKPOINT}.pkl"}}}
        row["conditions"] = {"samples": samples, "seed": seed, "noise": noise}
        if row["metric"] == "fid_published_min3":
            row |= {"samples": 3 * samples, "protocol": row["protocol"] | {"runs": [40.5, 41.0, 42.0]}}
    return found


@each(
    ("values", "noise", "protocol", "metric", "said"),
    [
        (BOTH, "edm", ONE, "fid_published", "yes"),
        (BOTH, "edm", THREE, "fid_published_min3", "yes"),
        ({"fid": 42.5}, "edm", ONE, "fid", "yes"),
        ({"fid": 42.5}, "edm", THREE, "fid", "in part: one run, the paper's is the least of three"),
        ({"fid_published_min3": 40.5}, "edm", ONE, "fid_published_min3", "in part: the least of 3 runs, the paper's is one"),
        ({"fid": 42.5}, "philox", ONE, "fid", "in part: noise differs (philox from seed 0, edm from seed 0)"),
        ({"fid": 42.5}, "philox", "50,000 samples; best over training", "fid", "in part: the paper's is best over training"),
    ],
)
def test_runs_and_noise_are_compared_and_the_metric_is_the_paper_s(values, noise, protocol, metric, said):
    paper = one_paper(teacher=CHECKPOINT, protocol=protocol, noise="edm" if protocol in (ONE, THREE) else "")
    (line,) = papers.join_published(published_rows(values, noise=noise), paper).to_dict("records")
    assert (line["metric"], line["ours"], line["comparable"]) == (metric, values[metric], said)


def test_samples_are_those_of_a_run():
    (line,) = papers.join_published(published_rows({"fid_published_min3": 40.5}, 2500), one_paper(protocol=THREE)).to_dict("records")
    assert line["comparable"].startswith("no: 2,500 samples, papers use 50,000")


def test_the_second_stage_is_compared_by_its_own_loss():
    told = {"classes": 10, "distiller": {"loss": "l1", "second_loss": "l1_lpips"}}
    for nfe, reason in ((1, "loss differs (l1_lpips, l1)"), (5, "loss differs (l1, l1_lpips)")):
        other = "l1" if nfe == 1 else "l1_lpips"
        ours = our_fid(method="sfd_one", loss="l1", nfe=nfe, protocol=told)
        (same, differs) = (
            papers.join_published(ours, one_paper(method="sfd_one", nfe=nfe, loss=loss)).to_dict("records")[0]["comparable"]
            for loss in ({"l1": "l1_lpips", "l1_lpips": "l1"}[other], other)
        )
        assert "loss" not in same
        assert reason in differs


def test_rows_that_are_no_measurement_are_not_compared():
    ours = [row | {"conditions": {"budget": "smoke (not a measurement)"}} for row in our_fid()]
    (line,) = papers.join_published(ours, one_paper()).to_dict("records")
    assert line["comparable"].startswith("no: not a measurement")


@each(
    ("ours", "paper", "reason"),
    [
        ({}, {}, ""),
        (STUDENT, STUDENT, ""),
        ({}, {"afs": "", "grid": ""}, "; afs, grid not stated by the paper"),
        ({}, {"end": "", "conditioning": ""}, "; end, conditioning not stated by the paper"),
        (STUDENT, STUDENT | {"loss": ""}, "; loss not stated by the paper"),
        (STUDENT | {"loss": ""}, STUDENT, "; loss not stated by us"),
        ({"grid": ""}, {"end": ""}, "; grid not stated by us; end not stated by the paper"),
        ({}, {"wrap": ""}, "; wrap not stated by the paper"),
        ({"protocol": {}}, {"conditioning": "unconditional"}, "; conditioning not stated by us"),
    ],
)
def test_a_setting_that_a_side_leaves_open_is_named(ours, paper, reason):
    (line,) = papers.join_published(our_fid(**ours), one_paper(**paper)).to_dict("records")
    assert line["difference"] == 2.5
    assert line["comparable"] == f"in part: network and training differ{reason}"


def test_a_loss_that_a_student_has_from_its_settings_is_compared_too():
    ours = our_fid(method="ctm", solver="ctm_gamma_0", protocol={"classes": 10, "distiller": {"loss": "pseudo_huber"}})
    (line,) = papers.join_published(ours, one_paper(method="ctm", solver="ctm_gamma_0", loss="lpips")).to_dict("records")
    assert "loss differs (pseudo_huber, lpips)" in line["comparable"]


def test_a_variant_is_beside_its_own_line_alone():
    ours = our_fid(method="sfd", solver="euler", variant="heun_002")
    assert papers.join_published(ours, one_paper(method="sfd")).empty
    assert len(papers.join_published(ours, one_paper(method="sfd", variant="heun_002"))) == 1


def test_lines_that_no_cell_covers_are_told_with_the_reason():
    both = papers.pd.concat([one_paper(suites="cifar10 other"), one_paper(suites="cifar10", nfe=6)])
    both = papers.pd.concat([both, one_paper(suites="cifar10", method="pd"), one_paper(suites="cifar10", method="")])
    found = papers.gaps(our_fid(), both).to_dict("records")
    assert [line["why"] for line in found] == ["euler is here at NFE 5 alone", "no cell of pd", "none of our methods is it"]
    assert papers.gaps(our_fid(), one_paper(suites="other")).empty
    lacks = papers.gaps(cell_rows(values={"fd_digits": 3.0, "fid": None}, dataset="cifar10"), one_paper(suites="cifar10"))
    assert lacks["why"].tolist() == ["unavailable: the weights of fid are not here"]
    elsewhere = papers.gaps(our_fid(), one_paper(suites="cifar10", dataset="FFHQ"))
    assert elsewhere["why"].tolist() == ["no cell of euler"]
    text = papers.published_text(our_fid(), both)
    assert "## Lines of the papers that no cell covers" in text
    assert "euler is here at NFE 5 alone" in text


def test_what_holds_of_every_line_is_said_once():
    ours = our_fid(samples=2500) + our_fid(samples=2500, solver="heun")
    both = papers.pd.concat([one_paper(), one_paper(solver="heun", afs="yes")])
    head, table = papers.published_text(ours, both).split("\n\n", 1)
    assert head.endswith("Of every line holds: 2,500 samples, papers use 50,000; network and training differ.")
    assert "papers use" not in table
    assert "| no: afs differs (no, yes) " in table
    assert "| no " in table
    assert "Of every line" not in papers.published_text(our_fid(), one_paper())


def test_the_papers_settings_fit_their_nfe_and_notes():
    table = papers.read_published()
    table = table[(table["method"] != "") & (table["dataset"] == "CIFAR-10")]
    values = {
        "afs": {"yes", "no", ""},
        "end": {"zero", "sigma_min", "zero_last", ""},
        "conditioning": {"unconditional", "class-conditional"},
    }
    values["grid"] = {"polynomial", "logsnr", "time_uniform", "time_uniform_rho2", "cosine", "searched", ""}
    values["wrap"] = {"none", "clip", "dynamic_threshold", ""}
    values["loss"] = {"l1", "l2", "lpips", "l1_lpips", "pseudo_huber", "norm", "l2+truncated_snr", ""}
    assert all(set(table[f]) == values[f] for f in papers.SETTINGS)
    assert set(table[table["method"] == "teacher"]["loss"]) == {""}
    # Two evaluations per step: N steps to sigma_min take 2 N, the step to 0 takes one evaluation and makes 2 N - 1; AFS saves one.
    two = table[table["solver"].isin(["heun", "dpm_2s"]) & (table["afs"] != "") & (table["end"] != "")]
    assert len(two) >= 22  # 4 with AFS and 4 without for each solver, and those of heun to 0
    assert all(nfe % 2 == ((afs == "yes") + (end == "zero")) % 2 for nfe, afs, end in zip(two["nfe"], two["afs"], two["end"]))


def test_no_paper_of_the_shipped_file_is_compared_across_settings():
    ours = our_fid(solver="heun", nfe=5) + our_fid(**STUDENT, nfe=1, grid="polynomial", end="sigma_min")
    lines = papers.join_published(ours, papers.read_published()).to_dict("records")
    assert sorted({line["published"] for line in lines}) == [3.55, 4.10, 5.88, 10.53, 97.67]
    assert all(line["comparable"].startswith("no: ") for line in lines)  # every one is unconditional, ours is class-conditional
    reasons = {line["published"]: line["comparable"] for line in lines}
    assert reasons[97.67].startswith("no: afs differs (no, yes); end differs (zero, sigma_min); conditioning differs")
    assert "loss differs (l2, lpips)" in reasons[3.55]
    assert "loss" not in reasons[5.88]


@each(
    ("ours", "same"),
    [("imagenet64", True), ("imagenet-64x64", True), ("ImageNet", True), ("imagenet", True), ("imagenet512", False), ("cifar10", False)],
)
def test_names_of_data_sets_with_or_without_their_side(ours, same):
    assert papers.same_dataset(ours, "ImageNet", "64") is same


def test_a_dataset_without_papers_is_one_line():
    assert papers.published_text(naive_rows(), one_paper()) == "No published numbers for digits: results/published.csv has CIFAR-10.\n"
    ours = cell_rows(values={"fd_digits": 3.0, "fid": 42.5}, dataset="cifar10")
    assert "0000.00000" in papers.published_text(ours, one_paper())
