"""The Triton kernel without a GPU: interpreted against float64, compiled ahead of time; and on a GPU where there is one.

The interpreter runs the launcher's own calls on CPU tensors. It truncates float32 to bfloat16, so bfloat16 is only held to its
last bit on a GPU.
"""

import itertools
import random
import re
import runpy
import sys

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from kernels import fused, philox, reference
from kernels.primitive import Normals
from support.each import each

triton = pytest.importorskip("triton", reason="Triton is not installed: nothing of its kernel was checked")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.interpreter import InterpretedFunction  # noqa: E402

IMAGES = (2, 3, 5, 7)  # no multiple of anything
SEEDS = torch.tensor([3, (7 << 32) + 11, (1 << 62) + 5])
SLOT = (5 << 8) + 1
LAST = torch.channels_last


def fresh(shape, dtype=torch.float32, last=False, seed=0, device="cpu") -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    return x.contiguous(memory_format=LAST) if last else x


def poisoned(shape, dtype=torch.float32, last=False, device="cpu") -> Tensor:
    x = torch.full(shape, float("nan"), dtype=dtype, device=device)
    return x.contiguous(memory_format=LAST) if last else x


def table_of(outputs: int, columns: int, batch: int | None = None, device="cpu") -> Tensor:
    return fresh((outputs, columns) if batch is None else (outputs, columns, batch), seed=99, device=device)


def exact(inputs, table: Tensor, normals: Normals | None = None) -> Tensor:
    """[M, B, ...] in float64."""
    terms = [x.double() for x in inputs]
    if normals is not None:
        terms.append(philox.normals(*normals, inputs[0].shape[1:].numel()).double().view(inputs[0].shape))
    return torch.einsum("mk,kb...->mb..." if table.ndim == 2 else "mkb,kb...->mb...", table.double(), torch.stack(terms))


def check(outputs, inputs, table, normals=None):
    """The launcher's outputs against float64, each rounded to its dtype; an element that was not written would be not-a-number."""
    expected = exact(inputs, table, normals)
    fused.update(outputs, inputs, table, normals)
    for y, e in zip(outputs, expected, strict=True):
        assert_close(y, e.to(y.dtype))


@triton.jit
def normals_of_words(a, b, x, y, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first, second = fused.box_muller(tl.load(a + at).to(tl.uint32), tl.load(b + at).to(tl.uint32))
    tl.store(x + at, first)
    tl.store(y + at, second)


def check_edge_words(kernel, device="cpu"):
    """Every pair of words where a formula changes its case or an argument reaches its end, and their neighbours: bit for bit."""
    borders = [0, *(k << 29 for k in range(1, 8)), 1 << 32, int(2**31.5), int(2**30.5), *(1 << k for k in range(29))]
    words = sorted({w for border in borders for w in range(border - 2, border + 3) if 0 <= w < 1 << 32})
    pairs = torch.tensor(list(itertools.product(words, repeat=2)), device=device)
    a, b = (torch.nn.functional.pad(w, (0, -len(w) % 1024)).contiguous() for w in pairs.unbind(1))
    x, y = torch.empty(2, len(a), device=device)
    kernel[(len(a) // 1024,)](a, b, x, y, BLOCK=1024, enable_fp_fusion=False)
    for found, wanted in zip((x, y), philox.box_muller(a.cpu(), b.cpu()), strict=True):
        assert torch.equal(found.cpu().view(torch.int32), wanted.view(torch.int32))


@pytest.fixture
def interpreted(monkeypatch):
    """The module's kernels as Python, in blocks small enough that a sample has several."""
    for name, value in vars(fused).copy().items():
        if isinstance(value, triton.JITFunction):
            monkeypatch.setattr(fused, name, InterpretedFunction(value.fn))
        elif isinstance(value, tl.constexpr):
            monkeypatch.setattr(fused, name, value.value)
    monkeypatch.setattr(fused, "BLOCK", 64)


@pytest.mark.usefixtures("interpreted")
class TestInterpreted:
    @each("by_sample", [False, True])
    @each("outputs", range(1, 5))
    @each("inputs", range(1, 9))
    def test_every_count(self, inputs, outputs, by_sample):
        """Dtypes and layouts are drawn anew for each case."""
        draw = random.Random(f"{inputs} {outputs} {by_sample}")
        kinds = [(draw.choice([torch.float32, torch.float16]), draw.random() < 0.5) for _ in range(inputs + outputs)]
        xs = [fresh(IMAGES, *kind, seed=k) for k, kind in enumerate(kinds[:inputs])]
        check([poisoned(IMAGES, *kind) for kind in kinds[inputs:]], xs, table_of(outputs, inputs, 2 if by_sample else None))

    @each("noise", [False, True])
    @each("last", list(itertools.product([False, True], repeat=4)))
    def test_every_layout(self, last, noise):
        xs = [fresh(IMAGES, last=last[k], seed=k) for k in range(2)]
        normals = Normals(SEEDS[1:], SLOT) if noise else None
        check([poisoned(IMAGES, last=mine) for mine in last[2:]], xs, table_of(2, 2 + noise), normals)

    @each("shape", [(1, 1), (5, 2), (3, 64), (2, 63), (2, 65), (2, 128), (4, 3, 1, 7), (3, 1, 4, 4), (2, 2, 3, 4, 5)])
    def test_every_size(self, shape):
        for by_sample, noise in itertools.product([False, True], repeat=2):
            normals = Normals(torch.arange(shape[0]), SLOT) if noise else None
            xs = [fresh(shape, seed=k) for k in range(2)]
            check([poisoned(shape)], xs, table_of(1, 2 + noise, shape[0] if by_sample else None), normals)

    @pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
    def test_in_place(self, last):
        xs = [fresh(IMAGES, last=last, seed=k) for k in range(3)]
        check([xs[1], xs[0]], xs, table_of(2, 3))

    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize("noise", [None, Normals(SEEDS[:2], SLOT)])
    def test_an_output_of_several_batches_is_written_so_often(self, last, noise):
        """Its first part in place of an input; the other output in the other layout when `last`."""
        xs, table = [fresh(IMAGES, seed=k) for k in range(2)], table_of(2, 2 + (noise is not None))
        twice, thrice = torch.cat([xs[0], poisoned(IMAGES)]), poisoned((3 * IMAGES[0], *IMAGES[1:]), torch.float16, last)
        expected = exact(xs, table, noise)
        fused.update([twice, thrice], [twice[: IMAGES[0]], xs[1]], table, noise)
        for parts, dtype, wanted in zip((twice, thrice), (torch.float32, torch.float16), expected, strict=True):
            for part in parts.split(IMAGES[0]):
                assert_close(part, wanted.to(dtype))

    def test_in_place_among_layouts(self):
        xs = [fresh(IMAGES, last=k == 1, seed=k) for k in range(3)]
        check([xs[1], xs[0], xs[2]], xs, table_of(3, 4, 2), Normals(SEEDS[:2], SLOT))

    def test_views_at_odd_addresses_and_nothing_beside_them(self):
        buffer, count = poisoned((250,)), 2 * 105
        y, x = buffer[3 : 3 + count].view(IMAGES), fresh((count + 1,))[1:].view(IMAGES)
        check([y], [x], table_of(1, 1))
        assert buffer[:3].isnan().all()
        assert buffer[3 + count :].isnan().all()

    @each("slot", [0, SLOT, (1 << 32) - 1])
    @each("last", [False, True])
    def test_noise_is_the_definition_bit_for_bit(self, last, slot):
        y, normals = poisoned((3, *IMAGES[1:]), last=last), Normals(SEEDS, slot)
        fused.update([y], [], torch.ones(1, 1), normals)
        assert torch.equal(y.flatten(1).view(torch.int32), philox.normals(SEEDS, slot, 105).view(torch.int32))

    def test_noise_beside_inputs_bit_for_bit(self):
        xs = [fresh(IMAGES, torch.float16, last=True), fresh(IMAGES, seed=1)]
        ys = [poisoned(IMAGES), poisoned(IMAGES, last=True)]
        table = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
        fused.update(ys, xs, table, Normals(SEEDS[:2], SLOT))
        z = philox.normals(SEEDS[:2], SLOT, 105).view(IMAGES)
        assert torch.equal(ys[0], z)
        assert torch.equal(ys[1], -z)

    def test_many_words_bit_for_bit(self, monkeypatch):
        monkeypatch.setattr(fused, "BLOCK", 1 << 17)
        seeds = torch.randint(1 << 62, (4,), generator=torch.Generator().manual_seed(0))
        y = poisoned((4, 1 << 17))
        fused.update([y], [], torch.ones(1, 1), Normals(seeds, SLOT))
        assert torch.equal(y, philox.normals(seeds, SLOT, 1 << 17))

    def test_edge_words_bit_for_bit(self):
        check_edge_words(InterpretedFunction(normals_of_words.fn))

    def test_nothing_to_sum(self):
        y = poisoned(IMAGES)
        fused.update([y], [], torch.zeros(1, 0))
        assert torch.equal(y, torch.zeros(IMAGES))

    def test_empty_batch(self):
        fused.update([torch.empty(0, 3, 4, 4)], [torch.empty(0, 3, 4, 4)], torch.ones(1, 1))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("inputs", [1, 3, 8])
    def test_no_worse_than_twice_eager(self, inputs, dtype):
        xs, table, y = [fresh((8, 3, 8, 8), dtype, seed=k) for k in range(inputs)], table_of(1, inputs), poisoned((8, 3, 8, 8), dtype)
        expected = exact(xs, table)[0]
        eager = sum(float(c) * x for c, x in zip(table[0], xs, strict=True))
        fused.update([y], xs, table)
        assert (y - expected).abs().max() <= 2 * (eager - expected).abs().max()

    def test_bfloat16(self):
        """Budget 2^-7: the interpreter truncates the outputs, which costs up to one unit in the last of 8 bits."""
        xs = [fresh(IMAGES, torch.bfloat16, last, seed=int(last)) for last in (False, True)]
        y, table = poisoned(IMAGES, torch.bfloat16), table_of(1, 2)
        fused.update([y], xs, table)
        assert_close(y.double(), exact(xs, table)[0], rtol=2**-7, atol=1e-6)  # one unit of truncation


@pytest.fixture
def compiled(monkeypatch):
    """compiled(arch, outputs, ...): the kernel that the launcher would launch on a device of compute capability arch / 10."""
    kernel = fused.kernel
    found = []

    class Device:
        arch = 90

        def get_current_device(self):
            return self.arch

        def get_current_stream(self, device):
            return 0

        def get_current_target(self):
            return GPUTarget("cuda", self.arch, 32)

    class Compiler:
        def __getitem__(self, grid):
            return lambda *arguments, **options: found.append(kernel.warmup(*arguments, grid=grid, **options))

    def compiled(arch, *arguments):
        device.arch = arch
        fused.update(*arguments)
        return found[-1]

    device = Device()
    monkeypatch.setattr(triton.runtime.driver, "_active", device)
    monkeypatch.setattr(fused, "kernel", Compiler())
    return compiled


def accesses(kernel) -> dict[str, int]:
    """How often each kind of access to the tensors (not to scalars) is in the PTX."""
    found = re.findall(r"\b((?:ld|st)\.(?:global|shared)\.v\S+|(?:ld|st)\.shared\S*)", kernel.asm["ptx"])
    return {kind: found.count(kind) for kind in sorted(set(found))}


def sixteens(*dtypes, last=False, shape=(4, 3, 32, 32)) -> list[Tensor]:
    return [torch.empty(shape, dtype=d).to(memory_format=LAST if last else torch.contiguous_format) for d in dtypes]


F, B, H = torch.float32, torch.bfloat16, torch.float16


class TestCompiled:
    @pytest.mark.parametrize("arch", [80, 90])
    def test_contiguous_float32_is_read_and_written_in_128_bits(self, compiled, arch):
        kernel = compiled(arch, sixteens(F), sixteens(F, F), torch.ones(1, 2))
        assert kernel.asm["cubin"]
        assert f"sm_{arch}" in kernel.asm["ptx"]
        assert accesses(kernel) == {"ld.global.v4.b32": 4, "st.global.v4.b32": 2}

    @pytest.mark.parametrize("arch", [80, 90])
    def test_noise_is_not_contracted(self, compiled, arch):
        kernel = compiled(arch, sixteens(F), sixteens(F), torch.ones(1, 2), Normals(torch.arange(4), SLOT))
        assert kernel.asm["cubin"]
        assert "fma." not in kernel.asm["ptx"]
        assert not re.search(r"\.(approx|ftz)", kernel.asm["ptx"])
        assert kernel.asm["ptx"].count("sqrt.rn.f32") == 2  # one thread: four elements, one counter, two roots
        assert accesses(kernel) == {"ld.global.v4.b32": 1, "st.global.v4.b32": 1}

    @pytest.mark.parametrize("arch", [80, 90])
    @pytest.mark.parametrize(
        ("kinds", "wanted"),
        [
            ([B, B, B], {"ld.global.v4.b32": 2, "st.global.v4.b32": 1}),  # [y, x, x]: 8 elements of 16 bits
            ([F, F, B], {"ld.global.v4.b32": 1, "ld.global.v2.b32": 1, "st.global.v4.b32": 1}),  # 4 of 32 and of 16
            ([H, F, B], {"ld.global.v4.b32": 1, "ld.global.v2.b32": 1, "st.global.v2.b32": 1}),
        ],
        ids=["bf16", "fp32_bf16", "three"],
    )
    def test_every_dtype_in_full_vectors_and_nothing_through_shared_memory(self, compiled, arch, kinds, wanted):
        for last in (False, True):
            assert accesses(compiled(arch, sixteens(kinds[0], last=last), sixteens(*kinds[1:], last=last), torch.ones(1, 2))) == wanted
        assert accesses(compiled(arch, sixteens(kinds[0]), sixteens(*kinds[1:]), torch.ones(1, 2, 4))).keys() == wanted.keys()

    @pytest.mark.parametrize("arch", [80, 90])
    def test_what_else_a_plan_launches(self, compiled, arch):
        """Four outputs of eight inputs; tensors of both layouts with noise, in both orders; counts that are no multiple of 16."""
        noise = Normals(torch.arange(4), SLOT)
        for outputs, inputs, normals in [
            (sixteens(F, F, B, B), sixteens(*[F, B] * 4), None),
            (sixteens(F, last=True), sixteens(F, last=True) + sixteens(B), noise),
            (sixteens(F), sixteens(F) + sixteens(B, last=True), noise),
            (sixteens(F, shape=(4, 3, 5, 7)), sixteens(F, shape=(4, 3, 5, 7)), None),
        ]:
            kernel = compiled(arch, outputs, inputs, torch.ones(len(outputs), len(inputs) + (normals is not None), 4), normals)
            assert kernel.asm["cubin"]
            assert kernel.metadata.shared == 0

    def test_one_kernel_for_all_coefficients_slots_batches_and_sizes(self, compiled):
        kernels = set()
        for shape, slot in [((4, 3, 32, 32), 1), ((1, 3, 4, 4), 16), ((16, 3, 64, 64), 1 << 31), ((1, 1, 1, 16), 0)]:
            normals = Normals(torch.arange(shape[0]), slot)
            kernels.add(compiled(90, sixteens(F, shape=shape), sixteens(F, shape=shape), torch.randn(1, 2), normals))
        assert len(kernels) == 1
        shapes = [(4, 3, 32, 32), (1, 3, 32, 32), (256, 3, 64, 64), (1, 16)]
        assert len({compiled(90, sixteens(F, shape=s), sixteens(F, shape=s), torch.randn(1, 1)) for s in shapes}) == 1


@each(
    ("kinds", "order"),
    [
        ("cc", (False, 0)),
        ("ll", (True, 0)),
        ("ccl", (False, 0b100)),
        ("lc", (False, 0b01)),
        ("cl", (True, 0b01)),  # a tie: the last one, an output
        ("lcl", (True, 0b010)),
    ],
)
def test_memory_order(kinds, order):
    made = {"c": fresh(IMAGES), "l": fresh(IMAGES, last=True)}
    assert fused.memory_order([made[kind] for kind in kinds]) == order


def test_why_it_cannot_run():
    assert fused.reason_unavailable(torch.device("cpu")) == "it runs on CUDA devices, not on cpu"


def test_import_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert runpy.run_path(fused.__file__)["reason_unavailable"](torch.device("cuda")) == "Triton is not installed"


@pytest.mark.gpu
@each("noise", [False, True])
@each("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each("last", list(itertools.product([False, True], repeat=3)))
def test_on_a_gpu_as_the_reference(last, dtype, noise):
    """Layouts, and the dtypes that the interpreter cannot vouch for; sums may differ by contraction, noise alone may not."""
    shape = (3, 3, 37, 41)
    xs = [fresh(shape, dtype, last[0], device="cuda"), fresh(shape, torch.float32, last[1], seed=1, device="cuda")]
    normals = Normals(SEEDS.cuda(), SLOT) if noise else None
    for batch in (None, 3):
        table = table_of(2, 2 + noise, batch, "cuda")
        ys = [poisoned(shape, dtype, last[2], "cuda"), poisoned(shape, device="cuda")]
        wanted = [torch.empty_like(y) for y in ys]
        fused.update(ys, xs, table, normals)
        reference.update(wanted, xs, table, normals)
        for y, w in zip(ys, wanted, strict=True):
            assert_close(y, w)
    if normals is not None:
        fused.update(ys[1:], [], torch.ones(1, 1, device="cuda"), normals)
        assert torch.equal(ys[1].flatten(1).cpu(), philox.normals(SEEDS, SLOT, shape[1:].numel()))


@pytest.mark.gpu
def test_on_a_gpu_in_a_graph():
    """A captured launch reads its coefficients anew at each replay, and writes in place."""
    x, table = fresh((4, 3, 32, 32), device="cuda"), torch.tensor([[2.0]], device="cuda")
    fused.update([x], [x], table)  # compiles
    start, graph = x.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fused.update([x], [x], table)
    table.fill_(3.0)
    graph.replay()
    graph.replay()
    assert_close(x, 9 * start)


@pytest.mark.gpu
def test_on_a_gpu_edge_words():
    check_edge_words(normals_of_words, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [((1 << 31) + 1040,), (3, 3 << 28)], ids=["flat", "by_sample"])
def test_on_a_gpu_beyond_32_bit_offsets(shape):
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("less than 12 GB of free memory: offsets beyond 2^31 were not checked")
    x = torch.ones(shape, dtype=torch.float16, device="cuda")
    table = torch.full((1, 1, *shape[:1]) if len(shape) == 2 else (1, 1), 3.0, device="cuda")
    fused.update([x], [x], table)
    assert all(bool((part == 3).all()) for part in x.view(-1).split(1 << 28))
