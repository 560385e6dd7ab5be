"""What `support.each` makes of a test: every case is run, and every one that fails is named."""

import inspect

import pytest

from support.each import each


def test_every_case_is_run_and_every_failure_named():
    seen = []

    @each(("a", "b"), [(1, 2), (3, 3), (4, 5)])
    def check(a, b):
        seen.append((a, b))
        assert a == b

    with pytest.raises(BaseExceptionGroup, match="2 of 3 cases") as raised:
        check()
    assert seen == [(1, 2), (3, 3), (4, 5)]
    assert [error.__notes__ for error in raised.value.exceptions] == [["case 1: a=1, b=2"], ["case 3: a=4, b=5"]]


def test_what_is_not_raised_is_a_failure_like_any():
    seen = []

    @each("value", [1, 2, 3])
    def check(value):
        seen.append(value)
        with pytest.raises(ValueError, match="invalid literal"):
            int("x" if value == 2 else "1")

    with pytest.raises(BaseExceptionGroup) as raised:
        check()
    assert seen == [1, 2, 3]
    assert [error.__notes__ for error in raised.value.exceptions] == [["case 1: value=1"], ["case 3: value=3"]]


def test_axes_are_multiplied_and_what_is_left_is_asked_for():
    seen = []

    @each("a", [1, 2])
    @each("b", "xy")
    def check(name, a, b):
        seen.append((name, a, b))

    assert list(inspect.signature(check).parameters) == ["name"]
    check(name="n")
    assert seen == [("n", 1, "x"), ("n", 1, "y"), ("n", 2, "x"), ("n", 2, "y")]


def test_cases_share_no_folder_and_no_patch(tmp_path, monkeypatch):
    @each("value", [1, 2])
    def check(value, tmp_path, monkeypatch):
        assert not list(tmp_path.iterdir())
        (tmp_path / "file").write_text("")
        assert not hasattr(inspect, "patched")
        monkeypatch.setattr(inspect, "patched", value, raising=False)

    check(tmp_path=tmp_path, monkeypatch=monkeypatch)
    assert not hasattr(inspect, "patched")


def test_no_case_is_a_failure_and_a_skip_is_one_where_all_are():
    def check(value):
        if value:
            pytest.skip("not here")

    with pytest.warns(UserWarning, match=r"check: 1 of 2 cases were skipped \(not here\)"):
        each("value", [True, False])(check)()
    with pytest.raises(pytest.skip.Exception):
        each("value", [True, True])(check)()
    with pytest.raises(AssertionError, match="check has no case"):
        each("value", [])(check)()
    with pytest.raises(AssertionError, match="takes no"):
        each("other", [1])(check)
