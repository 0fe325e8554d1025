"""What a teacher teaches: its logits and its features, also to a student that has fewer channels."""

from __future__ import annotations

import copy
import itertools
import math
from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from cases import CASES, Case
from secateur.distill import Lesson, divergence, full, kept_of, objective, part, watched, weights_of
from secateur.errors import BadInput
from secateur.plan import Plan
from secateur.structure import all_kept
from secateur.task import call, to

CPU = torch.device("cpu")
PRUNABLE = [case for case in CASES if case.units]


SHUFFLED = {("shuffle module", "1")}  # its reader's groups keep channels by their places in the group


def some_plan(structure: sc.Structure, seed: int, amount: float = 0.34) -> Plan:
    """About a third of every group is gone, no group by the same places as another."""
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(group.shape, generator=generator) for name, group in structure.groups.items()}
    return sc.select(scores, structure, amount, scope="layer")


def other(value: object) -> object:
    """Another input of the same kind."""
    if isinstance(value, Tensor):
        return torch.randn_like(value) if value.is_floating_point() else value.flip(0)
    if isinstance(value, (tuple, list)):
        return type(value)(other(item) for item in value)
    return {key: other(item) for key, item in value.items()}


@pytest.mark.parametrize("case", PRUNABLE, ids=str)
def test_the_kept_part_of_every_modules_output_is_found_or_refused(case: Case):
    """On one batch the indices are chosen; on others, the shrunk model makes just that part of what the masked one makes."""
    teacher, example = case.model(), case.inputs()
    plan = some_plan(sc.channels(teacher, example), seed=1)
    small, masked = sc.shrink(teacher, plan).eval(), sc.mask(teacher, plan).eval()
    names = [name for name, module in teacher.named_modules() if name and name in dict(small.named_modules())]
    found, cut = 0, 0
    for name in names:
        try:
            with torch.no_grad(), watched(small, [name]) as made, watched(teacher, [name]) as shown:
                call(small, example), call(teacher, example)
            cut += any(s.shape != t.shape for s, t in zip(made[name], shown[name]))
            kept = kept_of(teacher, plan, [name], example, shown, made)[name]
        except BadInput as error:
            fine = case.approximate or (case.name, name) in SHUFFLED or "makes no tensor" in str(error) or "runs 0 times" in str(error)
            assert fine, f"{name}: {error}"
            continue
        for inputs in (example, other(example)):
            with torch.no_grad(), watched(small, [name]) as made, watched(masked, [name]) as shown:
                call(small, inputs), call(masked, inputs)
            for s, t, indices in zip(made[name], shown[name], kept, strict=True):
                assert part(t, indices).shape == s.shape
                if not case.approximate:
                    torch.testing.assert_close(part(t, indices), s)
            found += any(index is not None for indices in kept for index in indices)
    assert found or not cut or case.approximate


def nets() -> tuple[nn.Sequential, Plan, nn.Module]:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    teacher = teacher.double().eval()
    plan = some_plan(sc.channels(teacher, torch.randn(2, 2, 6, 6).double()), seed=2)
    return teacher, plan, sc.shrink(teacher, plan)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, 2, 6, 6, generator=generator).double(), torch.arange(5) % 3


def test_all_three_terms_are_the_equation():
    teacher, plan, student = nets()
    with torch.no_grad():
        for value in student.parameters():
            value.add_(0.1)
    x, y = batch()
    lesson = Lesson(teacher, 0.3, 2.0, {"0": 0.5, "4": 2.0}, plan)
    value = objective(F.cross_entropy, lesson, CPU)(student, x, y, 0)
    first, second = (plan.kept[f"{name}.weight"][0] for name in (0, 3))
    t0, t4, s0, s4 = teacher[0](x)[:, first], teacher[:5](x)[:, second], student[0](x), student[:5](x)
    p, q = (teacher(x) / 2).softmax(1), (student(x) / 2).softmax(1)
    expected = 0.7 * F.cross_entropy(student(x), y) + 0.3 * 4 * (p * (p / q).log()).sum(1).mean()
    expected += 0.5 * ((s0 - t0) ** 2).sum() / (t0**2).sum() + 2 * ((s4 - t4) ** 2).sum() / (t4**2).sum()
    torch.testing.assert_close(value, expected)
    value.backward()
    assert all(parameter.grad is not None for parameter in student.parameters()) and all(p.grad is None for p in teacher.parameters())


def test_features_of_a_flattened_map_are_those_that_the_next_layer_reads():
    """No tensor of the module itself has these indices, and the plan keeps whole channels of it."""
    teacher, plan, student = nets()
    x, _ = batch()
    with watched(teacher, ["5"]) as shown, watched(student, ["5"]) as made:
        teacher(x), student(x)
    (indices,) = kept_of(teacher, plan, ["5"], x, shown, made)["5"]
    assert torch.equal(indices[1], plan.kept["6.weight"][1])
    assert indices[1].tolist() == [4 * channel + place for channel in plan.kept["3.weight"][0].tolist() for place in range(4)]


def test_a_student_that_is_its_teachers_part_has_nothing_to_learn_from_the_first_features():
    teacher, plan, student = nets()
    x, y = batch()
    plain, taught = (objective(F.cross_entropy, lesson, CPU) for lesson in (None, Lesson(teacher, features={"0": 1.0}, plan=plan)))
    torch.testing.assert_close(taught(student, x, y, 0), plain(student, x, y, 0))
    later = objective(F.cross_entropy, Lesson(teacher, features={"4": 1.0}, plan=plan), CPU)
    assert later(student, x, y, 0) > plain(student, x, y, 0) + 1e-3, "channels that the second convolution read are gone"


def test_learning_features_brings_them_near():
    teacher, plan, student = nets()
    x, y = batch()

    def far(model: nn.Module) -> float:
        return (model[:4](x) - teacher[:4](x)[:, plan.kept["3.weight"][0]]).norm().item()

    pytest.importorskip("accelerate")
    tuned = sc.finetune(student, [(x, y)], lambda o, t: 0 * F.cross_entropy(o, t), 60, lr=1e-2, teacher=teacher, features=["3"], plan=plan)
    assert far(tuned.model) < 0.5 * far(student)


def test_the_teacher_is_only_read():
    teacher, plan, student = nets()
    before, hooks = copy.deepcopy(teacher.state_dict()), [len(module._forward_hooks) for module in student.modules()]
    teacher.train()
    objective(F.cross_entropy, Lesson(teacher, features={"1": 1.0}, plan=plan), CPU)(student, *batch(), 0)
    assert teacher.training and all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert [len(module._forward_hooks) for module in student.modules()] == hooks


@pytest.mark.parametrize(
    ("features", "weights"), [((), {}), (["a", "b"], {"a": 1.0, "b": 1.0}), ("a.b", {"a.b": 1.0}), ({"a": 2.5}, {"a": 2.5})], ids=str
)
def test_weights_of_features(features, weights):
    assert weights_of(features) == weights


def test_what_cannot_be_taught_is_named():
    pytest.importorskip("accelerate")
    teacher, plan, student = nets()
    less = some_plan(sc.channels(teacher, batch()[0]), seed=2, amount=0.6)
    layer = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)).double()
    rows = torch.randn(4, 5).double(), torch.arange(4) % 3
    norm = some_plan(sc.channels(layer, rows[0]), seed=0)
    for model, data, options, sentence in [
        (student, batch(), {"teacher": teacher, "features": ["0"]}, "Give plan=, by which the model was made smaller"),
        (student, batch(), {"features": ["0"]}, r"features is \['0'\], but there is no teacher"),
        (student, batch(), {"teacher": teacher, "features": ["head"], "plan": plan}, "The model has no module 'head'. There are 0, 1"),
        (student, batch(), {"teacher": teacher, "features": {"0": -1.0}, "plan": plan}, "must be a positive number"),
        (student, batch(), {"teacher": teacher, "features": ["0"], "plan": less}, "Give the plan that leads from the teacher to the model"),
        (sc.shrink(layer, norm), rows, {"teacher": layer, "features": ["2"], "plan": norm}, "a norm runs over the removed channels, or"),
    ]:
        with pytest.raises(BadInput, match=sentence):
            sc.finetune(model.double(), [data], lambda o, t: o.flatten(1).logsumexp(1), 1, **options)


def test_two_layers_that_keep_as_many_are_not_mixed_up():
    """Both lose two of six: only the numbers tell whose indices an activation's are."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 6), nn.ELU(), nn.Linear(6, 2)).double().eval()
    structure, x = sc.channels(teacher, torch.randn(3, 4).double()), torch.randn(3, 4).double()
    keep = all_kept(structure)
    for number, mask in enumerate(keep.values()):
        mask[[number, number + 2]] = False
    scores = {name: mask.double() for name, mask in keep.items()}
    plan = sc.select(scores, structure, threshold=0.5)
    student = sc.shrink(teacher, plan)
    with watched(teacher, ["1", "3"]) as shown, watched(student, ["1", "3"]) as made:
        teacher(x), student(x)
    found = kept_of(teacher, plan, ["1", "3"], x, shown, made)
    assert found["1"][0][1].tolist() == [1, 3, 4, 5] and found["3"][0][1].tolist() == [0, 2, 4, 5]


def test_a_tie_is_not_broken_but_by_the_modules_own_tensors():
    """All samples are zeros, so all channels are alike."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    structure = sc.channels(teacher, torch.randn(3, 4).double())
    scores = {name: torch.arange(6.0).roll(number) for number, name in enumerate(structure.groups)}
    plan = sc.select(scores, structure, threshold=1.5)
    student, x = sc.shrink(teacher, plan), torch.zeros(3, 4).double()
    with watched(teacher, ["0", "1"]) as shown, watched(student, ["0", "1"]) as made:
        teacher(x), student(x)
    found = kept_of(teacher, plan, ["0"], x, shown, made)
    assert found["0"][0][1].tolist() == plan.kept["0.weight"][0].tolist() != plan.kept["2.weight"][0].tolist()
    with pytest.raises(BadInput, match="Several kept channels fit the features of 1 on this batch"):
        kept_of(teacher, plan, ["1"], x, shown, made)


def test_devices_are_followed():
    """The objective's teacher is a copy on the device that is asked for."""
    teacher, _, student = nets()
    x, y = to(batch(), CPU)  # type: ignore[misc]
    assert objective(F.cross_entropy, Lesson(teacher, 0.5), CPU)(student, x, y, 0).device == CPU


# logits ---------------------------------------------------------------------------------------------------------------------------------


def slow(truth: Tensor, outputs: Tensor, temperature: float, classes: int) -> float:
    """T^2 KL(softmax(t / T) || softmax(s / T)), number by number: the mean over all places but the classes."""
    values = []
    for t, s in zip(*(logits.movedim(classes, -1).flatten(0, -2).tolist() for logits in (truth, outputs)), strict=True):
        a, b = ([math.exp(z / temperature) for z in row] for row in (t, s))
        values.append(sum(x / sum(a) * math.log(x / sum(a) / (y / sum(b))) for x, y in zip(a, b)))
    return temperature**2 * sum(values) / len(values)


KINDS: dict[str, tuple[Callable[[Tensor], object], tuple[int, ...], int]] = {
    "tensor (N, C)": (lambda z: z, (4, 5), 1),
    "tensor (N, C, H)": (lambda z: z, (4, 5, 3), 1),
    "tensor (N, C, H, W)": (lambda z: z, (4, 5, 3, 2), 1),
    "dict (N, C)": (lambda z: {"loss": z.sum(), "logits": z}, (4, 5), 1),
    "dict (N, L, V)": (lambda z: {"logits": z, "hidden": z.flatten()}, (4, 3, 5), 2),
    "mapping (N, L, V)": (lambda z: UserDict(logits=z), (4, 3, 5), 2),
    "attribute (N, L, V)": (lambda z: SimpleNamespace(logits=z), (4, 3, 5), 2),
}
BY_KIND = pytest.mark.parametrize(("kind", "shape", "classes"), KINDS.values(), ids=KINDS)


def two(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return tuple(3 * torch.randn(shape, generator=generator).double() for _ in range(2))  # type: ignore[return-value]


@BY_KIND
def test_the_divergence_is_summed_over_classes(kind, shape, classes):
    truth, outputs = two(shape)
    value = divergence(kind(truth), kind(outputs.requires_grad_()), 2.5)
    assert value.item() == pytest.approx(slow(truth, outputs, 2.5, classes), rel=1e-12)
    (gradient,) = torch.autograd.grad(value, outputs)
    expected = 2.5 * ((outputs / 2.5).softmax(classes) - (truth / 2.5).softmax(classes)) * shape[classes] / outputs.numel()
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@BY_KIND
def test_the_divergence_of_half_precision_is_that_of_the_same_numbers_in_float32(kind, shape, classes, dtype):
    truth, outputs = (logits.to(dtype) for logits in two(shape))
    value = divergence(kind(truth), kind(outputs), 2.5)
    assert value.dtype == torch.float32 and torch.equal(value, divergence(kind(truth.float()), kind(outputs.float()), 2.5))
    assert value.item() == pytest.approx(slow(truth, outputs, 2.5, classes), rel=1e-5)


def test_a_loss_sees_no_half_precision():
    class Named(dict):
        """Its items are attributes, too."""

        __getattr__ = dict.__getitem__

    half, ids, other = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True), torch.arange(3), object()
    given = Named(logits=half, ids=ids, double=torch.ones(2).double(), other=other)
    made = full(given)
    assert type(made) is Named and made.logits.dtype == torch.float32 and made.double.dtype == torch.float64
    assert made.ids is ids and made.other is other and given.logits is half
    made.logits.sum().backward()
    assert torch.equal(half.grad, torch.ones_like(half))
    assert full(half).dtype == torch.float32 and full(other) is other


def test_logits_whose_classes_are_not_told_are_refused():
    z = torch.zeros(2, 3, 4)
    unlike = [z, z[:, :2], z[0, 0], (z,), {"scores": z}, {"logits": z}, {"logits": z[..., :2]}, {"logits": None}, {"logits": z[0, 0]}]
    maps = {"logits": z[None]}
    for truth, outputs in [*itertools.permutations(unlike, 2), (maps, maps), ((z,), (z,)), (z[0, 0], z[0, 0])]:
        with pytest.raises(BadInput, match=r"Distillation needs logits of one shape.* the teacher .*\. Let both return such logits"):
            divergence(truth, outputs, 1.0)
    assert divergence({"logits": z[0]}, z[0], 1.0) == 0, "the last dimension of two is dimension 1"


@pytest.mark.parametrize("kind", ["classes", "words"])
def test_hugging_faces_models_are_taught(kind: str):
    """One epoch of one batch, whose loss is the equation by hand."""
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'secateur[huggingface]'")

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.5, "pad_token_id": 0}
            config = transformers.GPT2Config(vocab_size=30, n_positions=8, n_embd=16, n_layer=1, n_head=2, num_labels=3, **off)
            models = {"classes": transformers.GPT2ForSequenceClassification, "words": transformers.GPT2LMHeadModel}
            return models[kind](config).eval()

    model, teacher = build(0), build(1)
    words = torch.randint(1, 30, (4, 6), generator=torch.Generator().manual_seed(0))
    data = {"input_ids": words, "labels": words[:, 0] % 3 if kind == "classes" else words}
    tuned = sc.finetune(model, [data], lambda outputs, _: outputs.loss, 1, teacher=teacher, distill=0.3, temperature=2.0)
    with torch.no_grad():
        s, t = model(**data), teacher(**data)
    expected = 0.7 * s.loss.item() + 0.3 * slow(t.logits, s.logits, 2.0, s.logits.dim() - 1)
    assert tuned.history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    halved = full(model.bfloat16()(**data))
    assert type(halved) is type(s) and halved.logits.dtype == halved["logits"].dtype == torch.float32
