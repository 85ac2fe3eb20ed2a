"""EoMT: mask annealing, masked attention, learning rates, image sizes, training and semi-supervised training."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import timm
import torch

from dearli_d2.engine.optimizer import parameter_groups
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError, WeightsError
from dearli_d2.methods.eomt.annealing import mask_probabilities
from dearli_d2.methods.eomt.names import our_names
from dearli_d2.methods.eomt.network import attention_mask
from dearli_d2.methods.eomt.vit import PlainViT, build_vit, masked_attention
from dearli_d2.modeling import build_model
from dearli_d2.modeling.mask2former.transformer_decoder import DecoderOutput
from tests.conftest import SSL, train_until

TINY = ("MODEL.EOMT.BACKBONE_WARMUP", "1", "SOLVER.WARMUP_ITERS", "1")


@pytest.fixture
def config(mini_config):
    """config(*overrides): configs/miniworld/eomt.yaml with crops of 64 pixels."""
    return lambda *overrides, file="eomt.yaml": mini_config(*TINY, *overrides, file=file)


@pytest.fixture
def model(config):
    return build_model(config())


def images(count: int, height: int = 64, width: int = 64) -> list[dict]:
    return [{"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8)} for _ in range(count)]


# ---------------------------------------------------------------------------------------------- mask annealing


@pytest.mark.parametrize(
    ("total", "starts", "ends"),
    [
        (88704, [14782, 29564, 44346, 59128], [29564, 44346, 59128, 73910]),  # COCO, 12 epochs
        (39153, [6520, 13040, 19560, 26080], [13040, 19560, 26080, 32600]),  # ADE20K, 31 epochs
    ],
)
def test_annealing_follows_the_published_steps(total, starts, ends):
    for step in range(0, total, 997):
        published = [
            1.0 if step < a else 0.0 if step >= b else (1 - (step - a) / (b - a)) ** 0.9
            for a, b in zip(starts, ends, strict=True)
        ]
        assert mask_probabilities(step / total, 4, 1 / 6, 5 / 6, 0.9) == pytest.approx(published, abs=0.005)


def test_annealing_starts_with_masks_and_ends_without():
    assert mask_probabilities(0.0, 3, 0.0, 1.0, 0.9) == [1, 1, 1]
    assert mask_probabilities(1.0, 3, 0.0, 1.0, 0.9) == [0, 0, 0]
    assert mask_probabilities(0.0, 2, 0.0, 0.0, 0.9) == [0, 0]  # never a mask
    assert mask_probabilities(0.99, 2, 1.0, 1.0, 0.9) == [1, 1]  # always


def test_the_state_of_the_annealing_depends_on_the_step_alone(model):
    model.set_progress(5, 10)
    middle = model.attn_mask_probs.clone()
    for step in (0, 9, 5):
        model.set_progress(step, 10)
    assert torch.equal(model.attn_mask_probs, middle)
    assert middle.tolist() == pytest.approx(mask_probabilities(0.5, 3, 1 / 6, 5 / 6, 0.9))


def test_probabilities_of_a_buffer_that_was_replaced_are_read_again(model):
    model = deepcopy(model)
    for value in (0.25, 0.75):
        model.attn_mask_probs = torch.full_like(model.attn_mask_probs, value)
        model.attn_mask_probs.mul_(1)  # the same version each time
        with torch.no_grad():
            model.network(torch.zeros(1, 3, 64, 64))
        assert model._probabilities == [value] * len(model.attn_mask_probs)


def test_a_model_that_came_to_be_in_inference_mode_predicts(model):
    with torch.inference_mode():
        model = deepcopy(model)
        model.attn_mask_probs = model.attn_mask_probs.clone()
        assert model.network(torch.zeros(1, 3, 64, 64))


def test_a_mask_shows_a_query_the_patches_inside_its_own_mask_and_all_other_tokens():
    embeddings, features = torch.randn(1, 2, 5, 8), torch.randn(2, 8, 12, 16)
    output = DecoderOutput(torch.empty(1, 2, 5, 4), embeddings, features)
    mask = attention_mask(output, (3, 4), prefix=6, probability=1.0)
    assert mask.shape == (2, 5, 5 + 6 + 12)
    assert mask[..., :11].all()
    logits = torch.einsum("bqc,bchw->bqhw", embeddings[0], features)
    # half-pixel bilinear resizing by 4 reads the four pixels in the middle of each cell
    cells = logits.unflatten(3, (4, 4)).unflatten(2, (3, 4))[:, :, :, 1:3, :, 1:3].mean((3, 5))
    assert torch.equal(mask[..., 11:], (cells > 0).flatten(2))
    assert attention_mask(output, (3, 4), prefix=6, probability=0.0).all()


def test_a_part_of_the_queries_is_masked_as_the_probability_says():
    output = DecoderOutput(torch.empty(1, 8, 500, 4), torch.ones(1, 8, 500, 1), -torch.ones(8, 1, 4, 4))
    free = attention_mask(output, (1, 1), prefix=0, probability=0.7)[..., -1]
    assert free.float().mean() == pytest.approx(0.3, abs=0.03)


def test_masked_attention_equals_a_softmax_over_what_is_allowed():
    torch.manual_seed(0)
    block = timm.create_model("vit_miniworld_patch8_reg4", img_size=32, num_classes=0).blocks[0].eval()
    x, mask = torch.randn(2, 9, 96), torch.rand(2, 4, 9) > 0.5
    mask[..., 0] = True
    q, k, v = block.attn.qkv(x).view(2, 9, 3, 4, 24).permute(2, 0, 3, 1, 4)
    weights = q @ k.transpose(-2, -1) / math.sqrt(24)
    weights[:, :, :4].masked_fill_(~mask[:, None], -math.inf)
    expected = block.attn.proj((weights.softmax(-1) @ v).transpose(1, 2).reshape(2, 9, 96))
    torch.testing.assert_close(masked_attention(block.attn, x, mask), expected)


@torch.no_grad()
def test_evaluation_does_not_depend_on_chance_and_needs_no_mask_in_the_end(model):
    model.eval()
    tensor = torch.randn(2, 3, 64, 64)
    model.attn_mask_probs.copy_(torch.tensor([0.2, 0.6, 0.4]))
    assert len(model.network(tensor)) == 2
    first, second = model.predict(tensor), model.predict(tensor)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    model.set_progress(1, 1)
    assert len(model.network(tensor)) == 1


# ---------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(("height", "width"), [(64, 64), (61, 45), (33, 90), (130, 71)])
@torch.no_grad()
def test_images_of_any_size_are_predicted_at_their_size(model, height, width):
    model.eval()
    (result,) = model([{**images(1, height, width)[0], "height": 70, "width": 50}])
    assert result["sem_seg"].shape[-2:] == (70, 50) == result["panoptic_seg"][0].shape
    (target,) = model.pseudo_label(images(1, height, width))
    assert target.masks.shape[1:] == (height, width)


@torch.no_grad()
def test_a_small_image_is_seen_as_training_sees_it(model):
    """Padded to the size of training with INPUT.PAD_VALUE, so that positions mean the same."""
    model.eval()
    (small,) = images(1, 40, 64)
    padded = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    padded[:, :40] = small["image"]
    (a,), (b,) = model([small]), model([{"image": padded}])
    torch.testing.assert_close(a["sem_seg"], b["sem_seg"][:, :40])


@torch.no_grad()
def test_images_of_a_batch_do_not_change_each_other(model):
    model.eval()
    batch = images(1, 64, 50) + images(1, 30, 64)
    for together, sample in zip(model(batch), batch, strict=True):
        torch.testing.assert_close(together["sem_seg"], model([sample])[0]["sem_seg"], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------- training


def test_learning_rates_fall_from_block_to_block_and_the_vit_starts_later(config):
    cfg = config("MODEL.EOMT.LAYER_DECAY", "0.8", "MODEL.EOMT.BACKBONE_DELAY", "2")
    groups = {name: group for group in parameter_groups(cfg, build_model(cfg)) for name in group["names"]}
    lr = cfg.SOLVER.BASE_LR
    factors = {"blocks.5.mlp.fc1.weight": 1.0, "blocks.2.attn.qkv.bias": 0.8**3, "blocks.0.ls1.gamma": 0.8**5,
               "patch_embed.proj.weight": 0.8**5, "pos_embed": 0.8**5, "cls_token": 0.8**5, "reg_token": 0.8**5,
               "norm.weight": 1.0}  # fmt: skip
    for name, factor in factors.items():
        group = groups[f"backbone.vit.{name}"]
        assert (group["lr"], group["delay"], group["warmup"]) == (pytest.approx(lr * factor), 2, 1), name
    for name in ("q.weight", "class_head.bias", "mask_head.2.weight", "upscale.0.norm.weight"):
        assert (groups[name]["lr"], groups[name]["delay"], groups[name]["warmup"]) == (lr, 0, None), name


@pytest.mark.parametrize("progress", [0, 0.4, 1])
def test_every_parameter_learns_at_every_stage(model, make_targets, progress):
    model.train()
    model.set_progress(progress, 1)
    losses = model([{**sample, "targets": make_targets(3)} for sample in images(2)])
    assert len(losses) == 3 * (3 + 1)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.abs().any()]
    assert not without
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_in_mixed_precision_are_near_those_of_fp32(model, make_targets, dtype):
    samples = [{**sample, "targets": make_targets(3)} for sample in images(2)]
    totals = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype, enabled=enabled), torch.no_grad():
            totals.append(sum(model.train()(samples).values()))
    torch.testing.assert_close(totals[1], totals[0], rtol=0.03, atol=0)


def test_recomputed_blocks_give_the_same_gradients(config, make_targets):
    samples = [{**sample, "targets": make_targets(3)} for sample in images(2)]
    gradients = []
    for switch in ("False", "True"):
        torch.manual_seed(0)
        model = build_model(config("MODEL.BACKBONE.CHECKPOINT_BLOCKS", switch)).train()
        torch.manual_seed(1)
        sum(model(samples).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_it_trains_and_a_resumed_run_goes_on_in_the_same_way(config, tmp_path):
    whole = DualStreamTrainer(config("OUTPUT_DIR", str(tmp_path / "whole")))
    whole.train()
    broken = config("OUTPUT_DIR", str(tmp_path / "broken"))
    train_until(broken, 3)
    resumed = DualStreamTrainer(broken, resume=True)
    resumed.train()
    for (name, a), b in zip(whole.student.state_dict().items(), resumed.student.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert whole.student.attn_mask_probs.tolist() == pytest.approx(mask_probabilities(3 / 4, 3, 1 / 6, 5 / 6, 0.9))


def test_a_teacher_labels_for_it_and_masks_as_the_student_does(config):
    trainer = DualStreamTrainer(config(*SSL, file="eomt_ssl.yaml"))
    trainer.train()
    assert torch.equal(trainer.teacher.model.attn_mask_probs, trainer.student.attn_mask_probs)
    logged = {name for name in trainer.storage.latest() if "loss" in name}
    assert {"loss_ce", "loss_dice_2", "unlabeled_loss_ce", "unlabeled_loss_mask_0"} <= logged
    before, after = trainer.teacher.model.q.weight, trainer.student.q.weight
    assert not torch.equal(before, after)


# ---------------------------------------------------------------------------------------------- weights and errors


def test_weights_of_another_patch_and_image_size_are_resized(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model("vit_miniworld_patch8_reg4", img_size=64, num_classes=3)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    same = build_vit("vit_miniworld_patch8_reg4", str(tmp_path / "vit.pth"), 64, 8)
    assert torch.equal(same.pos_embed, source.pos_embed)
    vit = build_vit("vit_miniworld_patch8_reg4", str(tmp_path / "vit.pth"), 192, 16)
    assert vit.patch_embed.proj.weight.shape[-1] == 16
    assert vit.pos_embed.shape[1] == 12 * 12
    assert torch.equal(vit.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    assert PlainViT(vit)(torch.zeros(1, 3, 96, 192)).shape == (1, 5 + 6 * 12, 96)
    torch.save(
        {name: value for name, value in source.state_dict().items() if "blocks.5" not in name}, tmp_path / "cut.pth"
    )
    with pytest.raises(WeightsError, match=r"cut.pth does not fit this ViT: 14 of .* tensors: blocks.5"):
        build_vit("vit_miniworld_patch8_reg4", str(tmp_path / "cut.pth"), 64, 8)
    with pytest.raises(WeightsError, match="'nowhere.pth' is no file"):
        build_vit("vit_miniworld_patch8_reg4", "nowhere.pth", 64, 8)


def test_names_of_the_authors_are_translated(model):
    state = {f"network.{n.replace('backbone.vit.', 'encoder.backbone.')}": v for n, v in model.state_dict().items()}
    constants = {"network.encoder.pixel_mean": torch.zeros(3), "criterion.empty_weight": torch.ones(17)}
    translated = our_names({**state, **constants})
    assert set(translated) == set(model.state_dict())
    assert our_names(translated).keys() == translated.keys()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.EOMT.BLOCKS", "7"), "MODEL.EOMT.BLOCKS is 7, vit_miniworld_patch8_reg4 has 6 blocks"),
        (("MODEL.BACKBONE.ARCH", "resnet18"), "resnet18 is no plain ViT"),
        (("MODEL.BACKBONE.ARCH", "eva02_tiny_patch14_224"), "eva02_tiny_patch14_224 is no plain ViT"),
        (("MODEL.BACKBONE.ARCH", "vit_nothing"), "timm has no model 'vit_nothing'"),
    ],
)
def test_networks_that_do_not_fit_are_refused(config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_model(config(*overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.CLASSIFIER", "none"), "EoMT has a linear classifier"),
        (("MODEL.MASK_FORMER.NUM_QUERIES", "0"), "NUM_QUERIES is 0"),
        (("MODEL.BACKBONE.FREEZE", "True"), "EoMT trains the whole ViT"),
        (("MODEL.BACKBONE.TRAINABLE_BLOCKS", "2"), "EoMT trains the whole ViT"),
        (("MODEL.BACKBONE.NAME", "OpenCLIPViT"), "EoMT needs a plain ViT of timm"),
        (("MODEL.BACKBONE.LAYERS", "(1, 2, 3, 4)"), "EoMT has no feature pyramid"),
        (("INPUT.CROP_SIZE", "100"), "INPUT.CROP_SIZE 100 must be a multiple of MODEL.EOMT.PATCH_SIZE 8"),
        (("MODEL.EOMT.ANNEALING_START", "0.9"), r"ANNEALING_START 0.9 is after ANNEALING_END 0.83"),
        (("MODEL.EOMT.LAYER_DECAY", "0"), "MODEL.EOMT.LAYER_DECAY is 0; it must be"),
    ],
)
def test_settings_that_contradict_the_method_are_refused(config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        config(*overrides)


def test_a_vit_that_would_never_learn_is_refused(config):
    with pytest.raises(
        ConfigError, match="the ViT learns nothing: MODEL.EOMT.BACKBONE_DELAY is 4, SOLVER.MAX_ITER is 4"
    ):
        DualStreamTrainer(config("MODEL.EOMT.BACKBONE_DELAY", "4"))
