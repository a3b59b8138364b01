"""The parts of multi-task fine-tuning: losses by hand and in gradient, heads, splits, alternation, error rates, and what is refused."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.metrics import roc_curve
from tiny_multitask import ENCODER, QUICK, make

from star_upstream import strict
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.multitask import data, evaluate, recipe
from star_upstream.multitask.heads import Head, MultitaskModel, shape
from star_upstream.multitask.losses import AdditiveAngular, Angular, psi
from star_upstream.multitask.recipe import TaskConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tones") / "data")


# losses


def at(degrees):
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def angular(*class_degrees, **options):
    loss = Angular(2, len(class_degrees), **options).double()
    with torch.no_grad():
        # lengths of the weights must not count
        loss.weight.copy_(torch.tensor([at(d) for d in class_degrees]) * torch.arange(1.0, len(class_degrees) + 1)[:, None])
    return loss


def test_angular_softmax_by_hand():
    x, target = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
    # theta 60: psi = cos 120 = -0.5, so logits -1 and 2 cos 90 = 0
    loss, plain = angular(60, 90, margin=2)(x, target)
    assert loss.item() == pytest.approx(math.log(1 + math.e)) and plain[0].tolist() == pytest.approx([1.0, 0.0])
    # theta 120: k = 1, psi = -cos 240 - 2 = -1.5, so logits -3 and 0
    assert angular(120, 90, margin=2)(x, target)[0].item() == pytest.approx(math.log(1 + math.exp(3)))
    # a scale takes the place of the length: -0.5 x 10 against 0
    assert angular(60, 90, margin=2, scale=10.0)(x, target)[0].item() == pytest.approx(math.log(1 + math.exp(5)))
    # lambda 1: the mean of cos 60 and psi is 0
    assert angular(60, 90, margin=2, relax=1.0)(x, target)[0].item() == pytest.approx(math.log(2))
    # margin 4, theta 100: 4 theta = 400 lies in the third piece, psi = cos 400 - 4
    expected = math.log(1 + math.exp(-2 * (math.cos(math.radians(400)) - 4)))
    assert angular(100, 90, margin=4)(x, target)[0].item() == pytest.approx(expected)


@pytest.mark.parametrize("margin", [1, 2, 3, 4])
def test_psi_is_the_definition_falls_and_has_no_steps(margin):
    theta = torch.linspace(0.0, math.pi, 2001, dtype=torch.float64)
    piece = (margin * theta / math.pi).floor().clamp(max=margin - 1)
    value = psi(theta.cos(), margin)
    assert torch.allclose(value, (-1.0) ** piece * torch.cos(margin * theta) - 2 * piece, atol=1e-9)
    assert (value.diff() < 0).all() and value.diff().abs().max() < 0.01 * margin


@pytest.mark.parametrize(
    "loss",
    [Angular(5, 4, margin=m, scale=s, relax=r) for m in (1, 2, 3, 4) for s, r in ((None, 0.0), (7.0, 2.0))]
    + [AdditiveAngular(5, 4, 0.2, 8.0), AdditiveAngular(5, 4, 1.4, 8.0)],
    ids=lambda loss: f"{type(loss).__name__}-{loss.margin}-{loss.scale}",
)
def test_gradients_in_float64(loss):
    torch.manual_seed(0)
    loss, x, targets = loss.double(), torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 3, 0, 1])
    names = [name for name, _ in loss.named_parameters()]

    def value(x, *weights):
        return torch.func.functional_call(loss, dict(zip(names, weights)), (x, targets))[0]

    assert torch.autograd.gradcheck(value, (x, *(p.detach().clone().requires_grad_() for p in loss.parameters())))


def test_additive_angular_by_hand():
    loss = AdditiveAngular(2, 2, margin=math.radians(30), scale=4.0).double()
    x, target = torch.tensor([[3.0, 0.0]]).double(), torch.tensor([0])
    for degrees, true in ((60, 4 * math.cos(math.radians(90))), (170, 4 * (math.cos(math.radians(170)) - math.radians(30) * 0.5))):
        with torch.no_grad():
            loss.weight.copy_(torch.tensor([at(degrees), at(90)]))
        value, plain = loss(x, target)
        assert value.item() == pytest.approx(math.log(1 + math.exp(-true))) and plain[0, 0].item() == pytest.approx(4 * math.cos(math.radians(degrees)))


# heads


@pytest.mark.parametrize("pooling", ["mean", "attentive"])
@pytest.mark.parametrize("input", ["last", "states", "predictions", "all"])
def test_vectors_are_the_same_alone_and_padded(pooling, input):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(**{**ENCODER, "conv_layers": tuple(map(tuple, ENCODER["conv_layers"]))}, prediction_layers=(1, 3)))
    task = TaskConfig(data="ks", input=input, pooling=pooling, embedding=6)
    model = MultitaskModel(encoder, {"keyword": task}, {"keyword": ["a", "b"]}).eval()
    head = model.heads["keyword"]
    assert shape(encoder.config, input)[0] == {"last": 1, "states": 3, "predictions": 2, "all": 5}[input] == (1 if head.mix is None else len(head.mix))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    waves = [torch.randn(n) for n in (1600, 4800)]
    with torch.no_grad():
        alone = torch.cat([model("keyword", w[None]) for w in waves])
        padded = model("keyword", torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor([1600, 4800]))
    assert padded.shape == (2, 6) and torch.allclose(alone, padded, atol=1e-4)


def test_padding_may_hold_anything():
    head = Head(TaskConfig(data="ks", pooling="attentive"), EncoderConfig(layers=1), 2)
    states = torch.randn(2, 5, 768)
    states[0, 3:] = float("nan")
    assert torch.isfinite(head([states], torch.tensor([3, 5]))).all()


def test_heads_that_an_encoder_cannot_have_are_refused():
    encoder = Encoder(EncoderConfig(**{**ENCODER, "conv_layers": tuple(map(tuple, ENCODER["conv_layers"]))}))
    with pytest.raises(StarError, match="tasks.keyword.input: 'predictions' needs an encoder with prediction heads"):
        MultitaskModel(encoder, {"keyword": TaskConfig(data="ks", input="predictions")}, {"keyword": ["a", "b"]})


# data


def tasks_of(root, **changes):
    configs = {name: strict.build(TaskConfig, {**values, **changes}) for name, values in QUICK["tasks"].items()}
    return data.load(configs, str(root))


def test_tasks_have_classes_and_splits(root):
    tasks = tasks_of(root)
    keyword, speaker = tasks["keyword"], tasks["speaker"]
    assert keyword.labels == ["no", "up", "yes"] and [len(keyword.rows(s)) for s in ("train", "valid", "test")] == [30, 9, 12]
    # one of each speaker's eight utterances is held out, and no speaker of the trials is learnt
    assert speaker.labels == ["anna", "ben", "cleo", "dan"] and [len(speaker.rows(s)) for s in ("train", "valid", "test")] == [28, 4, 12]
    assert sorted(speaker.table["target"][speaker.rows("valid")]) == [0, 1, 2, 3] and (speaker.table["target"][speaker.rows("test")] == -1).all()
    assert len(speaker.trials) == 66 and speaker.trials["target"].sum() == 18
    assert data.load({"k": TaskConfig(data="ks")}, str(root))["k"].digest == keyword.digest != speaker.digest


def test_tasks_take_turns_and_do_not_change_one_another(root):
    tasks = list(tasks_of(root).values())
    both, alone = data.Alternating(tasks, seed=3), data.Alternating(tasks[1:], seed=3)
    plan = [batch for epoch in range(4) for batch in both.plan(epoch)]
    assert [batch[0][0] for batch in plan] == [0, 1] * (len(plan) // 2) and both.iterations == 3 and len(both) == 6
    speakers = [[key[1:] for key in batch] for batch in plan[1::2]]
    assert speakers == [[key[1:] for key in batch] for epoch in range(4) for batch in alone.plan(epoch)]
    assert len({row for batch in speakers[:3] for row, _, _ in batch}) == 24  # a pass has each utterance at most once
    other = data.Alternating(tasks, seed=4)
    assert other.plan(0) != both.plan(0) == data.Alternating(tasks, seed=3).plan(0)


def test_processes_share_each_tasks_turn(root):
    tasks = list(tasks_of(root).values())
    ranks = [data.Alternating(tasks, 0, group=2, rank=r, world=2) for r in range(2)]
    for sampler in ranks:
        own = sampler.plan(0)[sampler.rank :: 2]
        assert [batch[0][0] for batch in own] == [0, 0, 1, 1] * sampler.iterations and len(own) == len(sampler)
    assert [data.Alternating(tasks, 0).plan(0)[0], data.Alternating(tasks, 0).plan(0)[2]] == ranks[0].plan(0)[:2]


def test_crops_lie_inside_and_move(root):
    task = tasks_of(root)["speaker"]
    samples, firsts = task.table["samples"].to_numpy(), set()
    for epoch in range(5):
        for batch in data.Alternating([task], 0).plan(epoch):
            for _, row, first, count in batch:
                assert count == min(samples[row], 6400) and 0 <= first <= samples[row] - count
                firsts.add((row, first))
    assert len(firsts) > 40


def test_balanced_classes_come_equally_often(root, tmp_path):
    task = tasks_of(root)["keyword"]
    task.config = TaskConfig(data="ks", batch=8, balanced=True)
    keep = ~((task.table["target"] == 0) & (task.table["split"] == "train") & (task.table.index % 10 > 0))
    task.table = task.table[keep].reset_index(drop=True)
    drawn = [task.table["target"][row] for epoch in range(100) for batch in data.Alternating([task], 0).plan(epoch) for _, row, _, _ in batch]
    assert np.bincount(drawn).min() / len(drawn) == pytest.approx(1 / 3, abs=0.05)


def changed(root, tmp_path, name, change):
    target = tmp_path / "data"
    (target / "manifests").mkdir(parents=True)
    (target / "wav").symlink_to(root / "wav")
    for file in (root / "manifests").iterdir():
        table = pd.read_csv(file, sep="\t")
        (change(table) if file.stem == name else table).to_csv(target / "manifests" / file.name, sep="\t", index=False)
    return target


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ks", lambda t: t.assign(label=t["label"].mask(t["id"] == "test-up-1", "stop")), "label 'stop' is in test but not in train"),
        ("ks", lambda t: t[~((t["split"] == "train") & (t["label"] == "up"))], "label 'up' is in dev but not in train"),
        ("asv_trials", lambda t: t.assign(test_path=t["test_path"].mask(t.index == 3, "wav/gone.wav")), "'wav/gone.wav' is not in asv_test.tsv"),
        ("asv_test", lambda t: t.assign(speaker=t["speaker"].mask(t["speaker"] == "eve", "anna")), "speaker 'anna' is in train and in test"),
        ("asv_trials", lambda t: t[t["target"] == 1], "no trial has target 0"),
        ("asv_train", lambda t: t.groupby("speaker").head(2), "no class has five training utterances"),
        ("asv_train", lambda t: t[t["speaker"] == "anna"], "one class alone"),
    ],
)
def test_data_that_cannot_be_learnt_or_tested_is_refused(root, tmp_path, name, change, message):
    with pytest.raises(StarError, match=message):
        tasks_of(changed(root, tmp_path, name, change))


# scores


def test_error_rates_agree_with_scikit_learn():
    random = np.random.default_rng(0)
    targets = np.repeat([1, 0], [300, 700])
    scores = np.round(random.normal(targets * 1.5, 1.0), 2)  # with ties
    found = evaluate.errors(targets, [scores])
    alarms, hits, _ = roc_curve(targets, scores, drop_intermediate=False)
    misses = 1 - hits
    after = int(np.argmax(alarms >= misses))
    gap = (misses - alarms)[after - 1 : after + 1]
    rate = alarms[after - 1] + gap[0] / (gap[0] - gap[1]) * (alarms[after] - alarms[after - 1])
    assert found["value"] == pytest.approx(100 * rate, abs=1e-9)
    assert found["min_dcf"] == pytest.approx((0.01 * misses + 0.99 * alarms).min() / 0.01, abs=1e-9)
    for name in ("", "min_dcf_"):
        low, high = found[f"{name}interval_95"]
        assert low < found["value" if not name else "min_dcf"] < high
    # of the mean over runs: a second run that is perfect halves the rate
    perfect = evaluate.errors(targets, [scores, targets.astype(float)])
    assert perfect["value"] == pytest.approx(50 * rate, abs=1e-9) and np.diff(perfect["interval_95"]) < np.diff(found["interval_95"])


def test_accuracy_is_a_mean_over_items():
    one = evaluate.accuracy([np.array([1.0, 0.0, 1.0, 1.0])])
    two = evaluate.accuracy([np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0])])
    assert one["value"] == 75.0 and two["value"] == 87.5 and 0.0 <= one["interval_95"][0] < 75.0 < one["interval_95"][1] <= 100.0


# recipes


@pytest.mark.parametrize("name", recipe.names())
def test_every_shipped_recipe_is_whole(name, tmp_path):
    from star_upstream.training.recipe import dump

    loaded = recipe.load(name)
    assert loaded.about and not loaded.data.root and loaded.setting == "multi-task, fine-tuned"
    speaker = "additive_angular" if name == "multitask_mini" else "angular"  # the paper's
    assert {n: (t.data, t.loss) for n, t in loaded.tasks.items()} == {"keyword": ("ks", "cross_entropy"), "speaker": ("asv", speaker)}
    (tmp_path / "copy.yaml").write_text(dump(loaded), encoding="utf-8")
    assert recipe.load(tmp_path / "copy.yaml") == loaded
    assert recipe.difference(dump(loaded), loaded) == ""


def test_overrides_choose_tasks_data_and_mode():
    one = recipe.load("multitask_mini", ["data=/corpora", "tasks=speaker", "frozen=true", "tasks.speaker.loss=angular", "tasks.speaker.margin=2"])
    assert list(one.tasks) == ["speaker"] and one.data.root == "/corpora" and one.setting == "single task, frozen"
    assert one.stepping.updates == one.training.updates
    both = recipe.load("multitask_mini", ["training.updates=10", "training.accumulate=3"])
    assert both.stepping.updates == 20 and both.stepping.accumulate == 3
    summed = recipe.load("multitask_mini", ["training.updates=10", "alternate=sum"])
    assert summed.stepping.updates == 10 and summed.stepping.accumulate == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tasks=speakers"], "tasks=speakers: the recipe's tasks are keyword, speaker"),
        (["tasks.keyword.margin=2"], "tasks.keyword.margin, scale: cross_entropy has none"),
        (["tasks.speaker.loss=angular", "tasks.speaker.margin=2.5"], "multiplies the angle by 1, 2, 3 or 4, got 2.5"),
        (["tasks.speaker.loss=aam"], "tasks.speaker.loss: expected 'cross_entropy' or 'angular' or 'additive_angular'"),
        (["tasks.speaker.crop=2"], "tasks.speaker.crop: unknown key; did you mean 'crop_seconds'"),
        (["tasks.speaker.data=vox"], "tasks.speaker.data: expected 'ks'"),
        (["training.updates=null", "training.epochs=2"], "set updates \\(iterations\\) or minutes"),
        (["frozen=3"], "frozen: expected bool"),
        (["tasks.key-word={data: ks}"], "letters, digits and underscores"),
    ],
)
def test_a_wrong_override_is_named(overrides, message):
    with pytest.raises(StarError, match=message):
        recipe.load("multitask_mini", overrides)


def test_a_recipe_of_ones_own_states_what_differs(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"base": "multitask_mini", "tasks": {"intent": {"data": "ic"}, "speaker": None}}))
    assert {n: t.data for n, t in recipe.load(tmp_path / "mine.yaml").tasks.items()} == {"keyword": "ks", "intent": "ic"}


def test_a_file_with_untrained_heads_answers(tmp_path):
    import star_upstream
    from star_upstream.multitask import untrained

    untrained("star_mini", tmp_path / "answers.safetensors", keyword=["yes", "no"])
    model = star_upstream.load(tmp_path / "answers.safetensors")
    assert model.keyword(torch.randn(16000)) in ("yes", "no") and model.speaker_embedding(torch.randn(400)).shape == (128,)
