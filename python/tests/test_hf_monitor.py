"""critbeta.hf.Monitor in a loop and in transformers' Trainer."""

import critbeta
import critbeta.hf
import numpy as np
import pytest
import torch
from hf_models import tiny, tokens
from transformers import Trainer, TrainingArguments


def train(model, x):
    model(x, labels=x).loss.backward()


def untouched(model):
    hooks = [part for part in model.modules() if part._forward_pre_hooks or part._forward_hooks]
    return not hooks and not any("_critbeta" in vars(part) for part in model.modules())


def test_scalars_are_those_of_a_recorder():
    model, x = tiny("llama"), tokens(2, 50)
    monitor = critbeta.hf.Monitor(every=2, rows=20)
    with critbeta.hf.record(model, rows=20) as rec, torch.no_grad():
        model(x)
    heads = rec.summary()["heads"]
    for step in range(4):
        with monitor.step(model) as scalars:
            model(x)
            # Only the first forward pass of a step counts.
            model(tokens(1, 30, seed=9))
        assert bool(scalars) == (step % 2 == 0) and untouched(model)
        if scalars:
            assert len(scalars) == 2 * 6 * 3 and scalars == monitor.scalars
            for head in heads:
                place = f"critbeta/{head['layer']}/head{head['head']}"
                assert scalars[f"{place}/operating_ratio"] == head["operating_ratio"]["q50"]
                assert scalars[f"{place}/tied"] == head["share_tied"]
                assert scalars[f"{place}/entropy"] == pytest.approx(head["median_relative_entropy"], rel=1e-6)


def test_a_monitor_changes_no_gradient():
    x, gradients = tokens(1, 30), []
    for monitored in (False, True):
        model = tiny("llama").train()
        model.activation_checkpointing_enable(dict(use_reentrant=False))
        if monitored:
            with critbeta.hf.Monitor().step(model) as scalars:
                train(model, x)
            assert len(scalars) == 36
        else:
            train(model, x)
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    assert torch.equal(*gradients)


def test_a_compiled_model_is_followed():
    model, x, found = tiny("llama"), tokens(1, 16), []
    for followed in (model, torch.compile(model, backend="eager")):
        monitor = critbeta.hf.Monitor(every=2)
        for _ in range(3):
            with monitor.step(followed), torch.no_grad():
                followed(x)
            assert untouched(model)
        found.append(monitor.scalars)
    assert found[0] == found[1] and len(found[0]) == 36


def test_a_step_that_fails_leaves_nothing():
    model, monitor = tiny("llama"), critbeta.hf.Monitor(every=1)
    with pytest.raises(ZeroDivisionError), monitor.step(model):
        raise ZeroDivisionError
    assert untouched(model)
    with pytest.raises(IndexError), monitor.step(model):
        model(tokens(1, 10) + 1000)
    assert untouched(model)
    with monitor.step(model) as scalars:
        pass
    assert scalars == {} and untouched(model)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="every is 0"):
        critbeta.hf.Monitor(every=0)
    step = critbeta.hf.Monitor().step(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no module calls its attention"), step:
        pass


def trainer(folder, model, monitor, **arguments):
    data = [{"input_ids": x, "labels": x} for x in tokens(24, 30)]
    steps = dict(max_steps=6, per_device_train_batch_size=2, logging_steps=2, save_strategy="no")
    options = dict(report_to=[], disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False)
    args = TrainingArguments(output_dir=str(folder), **steps, **options, **arguments)
    return Trainer(model=model, args=args, train_dataset=data, eval_dataset=data[:2], callbacks=[monitor])


def test_the_trainer_logs_the_scalars(tmp_path, capsys):
    model, monitor = tiny("llama"), critbeta.hf.Monitor(every=3)
    evaluation = dict(eval_strategy="steps", eval_steps=1)
    run = trainer(tmp_path, model, monitor, **evaluation, gradient_accumulation_steps=2)
    run.train()
    assert untouched(model)
    logged = {entry["critbeta/step"]: entry for entry in run.state.log_history if "critbeta/step" in entry}
    # The scalars of steps 1 and 4 stand beside the loss in the logs of steps 2 and 4.
    assert list(logged) == [1.0, 4.0] and [entry["step"] for entry in logged.values()] == [2, 4]
    for entry in logged.values():
        assert "loss" in entry and sum(name.startswith("critbeta/model.layers") for name in entry) == 36
        assert all(np.isfinite(value) for name, value in entry.items() if name.startswith("critbeta/"))


def test_a_training_that_fails_leaves_nothing(tmp_path):
    model, monitor = tiny("llama"), critbeta.hf.Monitor(every=1)
    run = trainer(tmp_path, model, monitor)
    run.compute_loss = lambda model, *args, **kwargs: model(tokens(1, 10) + 1000)
    with pytest.raises(IndexError):
        run.train()
    assert untouched(model)
