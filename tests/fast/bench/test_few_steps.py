"""The short table of one, two, four and ten passes: what it chooses, and its intervals."""

from bench.reports.few import few_steps
from support.each import each
from support.synthetic import cell_rows, naive_rows


def rows(**more):
    """Five solvers and students at few passes, `euler` twice at NFE 2."""
    found = naive_rows()
    for solver, value in (("euler", 5.0), ("heun", 4.0), ("dpmpp_2m", 3.0)):
        found += cell_rows(solver=solver, nfe=2, values={"fd_digits": value}, se=0.1)
    found += cell_rows(solver="euler", nfe=2, grid="logsnr", values={"fd_digits": 2.0}, se=0.1)
    found += cell_rows(solver="euler", nfe=3, values={"fd_digits": 0.5}, se=0.1)  # no pass that the table has
    found += cell_rows(solver="euler", nfe=10, guidance=2.0, values={"fd_digits": 0.5}, se=0.1)
    for seed, value in ((0, 1.0), (1, 2.0)):
        found += cell_rows(method="cd", solver="consistency", loss="l2", nfe=1, fit_seed=seed, values={"fd_digits": value}, se=0.1)
    return found + cell_rows(method="pd", solver="euler", loss="l2", nfe=4, values={"fd_digits": 7.0}, se=None)


def line(text, name):
    return next(part for part in text.splitlines() if part.startswith(f"| {name} "))


def test_a_solver_has_its_best_setting_and_a_student_the_mean_of_its_seeds():
    text = few_steps(rows())
    assert text.startswith("## digits: fd_digits at few passes, with 95% intervals")
    assert "2 [1.8, 2.2] (logsnr to 0)" in line(text, "euler")
    assert "1.5 [" in line(text, "**cd l2**")
    (head,) = [part for part in text.splitlines() if part.startswith("| NFE ")]
    assert [part.strip() for part in head.strip("|").split("|")] == ["NFE", "1", "2", "4"]  # nothing at 10 without guidance


def test_the_best_at_each_number_of_passes_is_bold_and_without_an_error_there_is_no_interval():
    text = few_steps(rows())
    assert "**2 [1.8, 2.2] (logsnr to 0)**" in line(text, "euler")
    assert "**7**" in line(text, "**pd l2**")
    assert "**3" not in line(text, "dpmpp_2m")


@each(("what", "value"), [("real images of the training set", "0.1"), ("real images held out", "0.4"), ("class means", "20.1")])
def test_the_floor_stands_below(what, value):
    assert f"- {what}: {value}" in few_steps(rows())


def test_little_to_show_is_no_page():
    assert few_steps(naive_rows()) == ""
    assert few_steps(cell_rows(nfe=1, values={"fd_digits": 1.0})) == ""
