"""PromptKD against numbers that its authors' own code computed: the teacher, values, gradients, a step."""

import pytest
import torch
from shared import golden, golden_cases, images, relative
from test_goldens import answer

from vlprompt import methods as m
from vlprompt.core.batch import Batch, Split
from vlprompt.core.stage import Lesson
from vlprompt.core.teacher import Teacher, TeacherSettings
from vlprompt.core.towers import Clip
from vlprompt.experiments.learned.teacher import OpenedTeacher, RunTeacher

CASES = golden_cases("promptkd")


class GivenTeacher(Teacher):
    """A teacher whose features of classes and answers are given."""

    key = "given"

    def __init__(self, texts, logits):
        self.texts, self.logits = texts, logits

    def encode_classes(self, names):
        return self.texts

    def answer(self, images, names):
        return self.logits


def learned_teacher(clip, arrays, h, names):
    """IVLP with the authors' teacher in it."""
    method = m.IVLP(clip, h["N_CTX_TEXT"], h["N_CTX_VISION"], h["PROMPT_DEPTH_TEXT"], h["PROMPT_DEPTH_VISION"])
    method.begin_lesson(Lesson(Split((), (), names)), torch.Generator().manual_seed(0))
    for key, value in arrays.items():
        parts = key.split(".")
        if parts[0] == "teacher":
            tokens = method.image_tokens if parts[1] == "image_encoder" else method.ctx
            layer = int(parts[4]) if "resblocks" in parts else 0
            tokens[layer].data.copy_(value)
    return RunTeacher(TeacherSettings(), clip.device, lambda settings, device: OpenedTeacher(method, "golden"))


def ours(method, theirs):
    """Our parameter that is the authors' `theirs`."""
    parts = theirs.split(".")
    if parts[-1].startswith("VPT"):
        return method.tokens[int(parts[3]) if "resblocks" in parts else 0]
    return getattr(method.projector[int(parts[2])], parts[3])


def begun(case, clip):
    """The method of a golden vector with the authors' initial values in it, its parameters by their names, a batch."""
    told, arrays = golden(case)
    h, names = told["hyperparameters"], tuple(told["classnames"])
    teacher = GivenTeacher(arrays["teacher_text_features"], arrays["teacher_logits"])
    if "teacher.prompt_learner.ctx" in arrays:
        teacher = learned_teacher(clip, arrays, h, names)
    method = m.PromptKD(clip, teacher, h["N_CTX_VISION"], h["PROMPT_DEPTH_VISION"], h["KD_WEIGHT"], h["TEMPERATURE"])
    method.begin_lesson(Lesson(Split((), (), names)), torch.Generator().manual_seed(0))
    pairs = {k.removeprefix("param."): ours(method, k.removeprefix("param.")) for k in arrays if k.startswith("param.")}
    with torch.no_grad():
        for name, parameter in pairs.items():
            parameter.copy_(arrays[f"param.{name}"].reshape(parameter.shape))
        method.projector[1].running_mean.copy_(arrays["running_mean"])
        method.projector[1].running_var.copy_(arrays["running_var"])
    assert {id(p) for p in pairs.values()} == {id(p) for p in method.parameters()}
    pictures, no_labels = images(arrays["images"], case), torch.empty(0, dtype=torch.long)
    return method, pairs, Batch(pictures.slice(0, 0), no_labels, names, None, Batch(pictures, no_labels, names)), arrays


@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_code(case, authors_clip):
    method, pairs, batch, arrays = begun(case, authors_clip)
    pictures, names, norm = batch.unlabelled.inputs, batch.names, method.projector[1]
    asked = Batch(pictures, batch.labels, names)
    errors = {
        "teacher texts": relative(
            Clip.unit(method.teacher.encode_classes(names)), Clip.unit(arrays["teacher_text_features"])
        ),
        "teacher logits": relative(method.teacher.answer(pictures, names), arrays["teacher_logits"]),
        "logits": relative((out := answer(method, asked)).logits, arrays["logits"]),
        "projected": relative(out.image_features, arrays["projected_eval_raw"]),
    }
    n_base = -(-len(names) // 2)
    for group, part in (("base", names[:n_base]), ("new", names[n_base:])):
        logits = method(pictures, method.prepare(part, method.precompute(part))).logits
        errors[f"logits of {group}"] = relative(logits, arrays[f"logits_{group}"])
    terms, out = method.train().loss_terms(batch, method.precompute(names))
    assert list(terms) == ["kd"]
    assert terms["kd"][1] == len(pictures)
    errors["loss"] = relative(terms["kd"][0], arrays["loss"])
    errors["training logits"] = relative(out.logits, arrays["train_logits"])
    errors["running mean"] = relative(norm.running_mean, arrays["running_mean_after"])
    errors["running variance"] = relative(norm.running_var, arrays["running_var_after"])
    terms["kd"][0].backward()
    with torch.no_grad():
        for name, parameter in pairs.items():
            gradient = arrays[f"grad.{name}"].reshape(parameter.shape)
            if gradient.any():
                errors[f"gradient of {name}"] = relative(parameter.grad, gradient)
            else:  # the batch norm takes the mean away: rounding alone
                assert parameter.grad.abs().max() < 1e-4
            parameter -= 0.1 * parameter.grad
            errors[f"{name} after a step"] = relative(parameter, arrays[f"after.{name}"].reshape(parameter.shape))
    errors["logits after a step"] = relative(answer(method, asked).logits, arrays["logits_after"])
    assert max(errors.values()) < 1e-4, errors


def test_there_are_vectors():
    assert len(CASES) >= 2
