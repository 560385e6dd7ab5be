"""Loading a student makes its network and no other."""

import torch

from fewstep.plugins import entries
from fewstep.students import Alone, as_student, student_network
from support.each import each
from support.tiny import made, mixture_data, teacher_of


@each("name", entries("distiller"))
def test_the_students_network_alone_is_the_one_that_is_trained(name: str) -> None:
    teacher, method = teacher_of(name, mixture_data()[1]), made(name)
    torch.manual_seed(3)
    nets = method.build(teacher)
    assert len(nets) == 1 or isinstance(method, Alone), "let build use a method network(teacher), see docs/adding-a-method.md"
    torch.manual_seed(3)
    alone = student_network(method, teacher).state_dict()
    own = nets["student"].state_dict()
    assert alone.keys() == own.keys()
    assert all(torch.equal(alone[key], own[key]) for key in own)


@each("name", ["ctm_gan", "dmd2", "pd"])
def test_critics_and_copies_are_not_built_to_load_a_student(name: str, monkeypatch) -> None:
    teacher, method = teacher_of(name, mixture_data()[1]), made(name)
    weights = method.build(teacher)["student"].state_dict()

    def refused(self, teacher):
        raise AssertionError("everything was built")

    monkeypatch.setattr(type(method), "build", refused)
    student = as_student(method, teacher, weights, method.sampling().nodes or 1, "weights")
    assert student.shape == teacher.shape
