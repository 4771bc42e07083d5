"""Checkpoints as the public has them, made from the oracles' models: folders, single files, and the names in both.

No renaming table is written down here: the single file's names come from turning diffusers' own converter around.
Every name that the layout could have goes in with a number on it; what the converter makes of it is read off.

Sources: the key lists of the public releases; ``diffusers.loaders.single_file_utils``.
"""

import gzip
import inspect
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from . import oracle
from .oracle import Tensor, nn, torch  # isort: split

from diffusers.loaders import single_file_utils as converters  # only now: oracle has prepared, or skipped
from safetensors.torch import load_file, save_file

UNET, VAE, CLIP, OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
)
AFFINE = (".weight", ".bias")
Names = dict[str, str]  # folder layout's name -> single file's name


# ---- names ----


def turn_around(convert: Callable, names: Iterable[str], wanted: Iterable[str]) -> Names:
    """Which of ``names`` the converter turns into each of ``wanted``; every wanted one must come out."""
    names = list(names)
    numbered = {name: torch.full((1, 1, 1, 1), i, dtype=torch.int64) for i, name in enumerate(names)}
    origin = {new: names[int(number)] for new, number in convert(numbered).items()}
    return {name: origin[name] for name in wanted}


def join(*parts: Iterable[str]) -> list[str]:
    """All concatenations of one string from each part."""
    return ["".join(combination) for combination in itertools.product(*parts)]


def unet_names(model: nn.Module) -> Names:
    """The single-file name of every parameter of a ``UNet2DConditionModel``."""
    config, wanted = model.config, list(model.state_dict())
    rows = len(config.block_out_channels) * (config.layers_per_block + 1)
    attends = [
        kind.startswith("CrossAttn") for kind in config.up_block_types for _ in range(config.layers_per_block + 1)
    ]
    res = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"]
    transformer = {name.split("attentions.")[1].split(".", 1)[1] for name in wanted if "attentions." in name}
    ends = ("time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2", "input_blocks.0.0", "out.0", "out.2")
    names = join(ends, AFFINE)
    for i in range(rows):
        names += join((f"input_blocks.{i + 1}.0.", f"output_blocks.{i}.0."), res, AFFINE)
        names += join((f"input_blocks.{i + 1}.0.op", f"output_blocks.{i}.{1 + attends[i]}.conv"), AFFINE)
        names += join((f"input_blocks.{i + 1}.1.", f"output_blocks.{i}.1."), transformer)
    names += join(("middle_block.0.", "middle_block.2."), res, AFFINE) + join(("middle_block.1.",), transformer)
    convert = lambda numbered: converters.convert_ldm_unet_checkpoint(numbered, config)
    return turn_around(convert, join((UNET,), names), wanted)


def vae_names(model: nn.Module) -> Names:
    """The single-file name of every parameter of an ``AutoencoderKL``."""
    levels, blocks = range(len(model.config.block_out_channels)), range(model.config.layers_per_block + 1)
    sides, res = ("encoder.", "decoder."), (".norm1", ".norm2", ".conv1", ".conv2", ".nin_shortcut")
    names = join(("quant_conv", "post_quant_conv"), AFFINE)
    names += join(sides, ("conv_in", "norm_out", "conv_out"), AFFINE)
    names += join(sides, ("mid.block_1", "mid.block_2"), res, AFFINE)
    names += join(sides, ("mid.attn_1.",), ("norm", "q", "k", "v", "proj_out"), AFFINE)
    for i in levels:
        names += join((f"encoder.down.{i}.downsample.conv", f"decoder.up.{i}.upsample.conv"), AFFINE)
        for j in blocks:
            names += join((f"encoder.down.{i}.block.{j}", f"decoder.up.{i}.block.{j}"), res, AFFINE)
    convert = lambda numbered: converters.convert_ldm_vae_checkpoint(numbered, model.config)
    return turn_around(convert, join((VAE,), names), model.state_dict())


def open_clip_names(model: nn.Module) -> dict[str, tuple[str, int]]:
    """OpenCLIP's name and the third of its rows (0 where it is not cut) for every parameter of a text tower."""
    layers = range(model.config.num_hidden_layers)
    parts = ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    names = ["positional_embedding", "token_embedding.weight", "ln_final.weight", "ln_final.bias", "text_projection"]
    for i in layers:
        names += join((f"transformer.resblocks.{i}.",), parts, AFFINE)
        names += join((f"transformer.resblocks.{i}.attn.in_proj_",), ("weight", "bias"))
    names = join((OPEN_CLIP,), names)
    thirds = lambda i, name: torch.arange(3 * i, 3 * i + (3 if "in_proj" in name else 1))
    numbered = {name: thirds(i, name).view(-1, *[1] * name.endswith("weight")) for i, name in enumerate(names)}
    numbered[OPEN_CLIP + "text_projection"] = torch.full((1, 1), 3 * names.index(OPEN_CLIP + "text_projection"))
    converted = converters.convert_open_clip_checkpoint(model, numbered)
    origin = {new.removeprefix("text_model."): divmod(int(number), 3) for new, number in converted.items()}
    return {name: (names[origin[name][0]], origin[name][1]) for name in model.state_dict()}


# ---- single files ----


def unet_file(model: nn.Module) -> dict[str, Tensor]:
    """The U-Net's part of a single file."""
    names = unet_names(model)
    return {names[name]: value for name, value in model.state_dict().items()}


def vae_file(model: nn.Module) -> dict[str, Tensor]:
    """The autoencoder's part of a single file: its attention is made of 1x1 convolutions there."""
    as_conv = lambda name, v: v[:, :, None, None] if "attentions" in name and v.ndim == 2 else v
    names = vae_names(model)
    return {names[name]: as_conv(name, value) for name, value in model.state_dict().items()}


def clip_file(model: nn.Module) -> dict[str, Tensor]:
    """The text tower of a 1.x single file, with the position numbers that it stores beside the parameters."""
    named = {f"{CLIP}text_model.{name}": value for name, value in model.state_dict().items()}
    return named | {f"{CLIP}text_model.embeddings.position_ids": torch.arange(77)[None]}


def open_clip_file(model: nn.Module, seed: int = 9) -> dict[str, Tensor]:
    """The text tower of a 2.x single file: with the last layer and the projection, which the folder has not."""
    origin, rows = open_clip_names(model), {}
    for name, value in model.state_dict().items():
        new, third = origin[name]
        rows.setdefault(new, {})[third] = value
    named = {name: torch.cat([thirds[i] for i in sorted(thirds)]) for name, thirds in rows.items()}
    generator = torch.Generator().manual_seed(seed)
    last, width = model.config.num_hidden_layers, model.config.hidden_size
    before, after = f"resblocks.{last - 1}.", f"resblocks.{last}."
    extra = {name.replace(before, after): value for name, value in named.items() if before in name}
    extra |= {OPEN_CLIP + "text_projection": torch.empty(width, width)}
    extra = {name: torch.empty_like(value).uniform_(-1, 1, generator=generator) for name, value in extra.items()}
    return named | extra | {OPEN_CLIP + "logit_scale": torch.tensor(4.6052)}


def buffers(steps: int = 1000) -> dict[str, Tensor]:
    """Some of the schedule's numbers that single files carry beside the weights."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2
    products = torch.cumprod(1 - betas, 0)
    named = {"betas": betas, "alphas_cumprod": products, "sqrt_alphas_cumprod": products.sqrt()}
    return {name: value.float() for name, value in named.items()} | {"scale_factor": torch.tensor(0.18215)}


def single_file(pipe: Any, ema_unet: nn.Module | None = None) -> dict[str, Tensor]:
    """The state dict of a whole pipeline in one file; with ``ema_unet``, its weights as the moving averages beside."""
    is_open_clip = pipe.text_encoder.config.hidden_act == "gelu"
    weights = unet_file(pipe.unet) | vae_file(pipe.vae)
    weights |= (open_clip_file if is_open_clip else clip_file)(pipe.text_encoder) | buffers()
    if ema_unet is not None:
        flat = lambda name: "model_ema." + name.removeprefix("model.").replace(".", "")
        weights |= {flat(name): value for name, value in unet_file(ema_unet).items()}
        weights |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(1000)}
    return {name: value.contiguous() for name, value in weights.items()}


def save_single_file(weights: dict[str, Tensor], path: Path, legacy: bool = False) -> Path:
    """Writes ``.safetensors``, or ``.ckpt`` as a training run leaves it (a zip; ``legacy``: a pickle stream)."""
    if path.suffix == ".safetensors":
        save_file({name: value.clone() for name, value in weights.items()}, path)
        return path
    run = {"state_dict": weights, "epoch": 1, "global_step": 470_000, "pytorch-lightning_version": "1.4.2"}
    run |= {"callbacks": {}, "optimizer_states": [], "lr_schedulers": []}
    torch.save(run, path, _use_new_zipfile_serialization=not legacy)
    return path


# ---- pipelines and folders ----


def save_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> Path:
    """``vocab.json`` and ``merges.txt`` of CLIP, made from the merges that come with OpenCLIP."""
    source = oracle.package_folder("open_clip") / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(source.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [chr(256 + n) for n in range(256 - len(printable))]
    letters = [chr(b) for b in printable] + others
    tokens = letters + [c + "</w>" for c in letters] + [merge.replace(" ", "") for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    special = {"bos_token": tokens[-2], "eos_token": tokens[-1], "unk_token": tokens[-1], "pad_token": pad}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    folder.mkdir(parents=True, exist_ok=True)
    write = lambda name, text: (folder / name).write_text(text, encoding="utf-8")
    write("vocab.json", json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    write("merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    write("special_tokens_map.json", json.dumps(special))
    write("tokenizer_config.json", json.dumps(settings | special))
    return folder


SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
PREDICTION, PAD = {"sd1": "epsilon", "sd2": "v_prediction"}, {"sd1": "<|endoftext|>", "sd2": "!"}


def scheduler(pipe: Any, kind: str, timestep_spacing: str = "leading", **settings: Any) -> Any:
    """One of diffusers' schedulers for a pipeline of ours, anew: ``from_config`` keeps what earlier ones had."""
    settings |= {"prediction_type": pipe.scheduler.config.prediction_type, "timestep_spacing": timestep_spacing}
    made = getattr(oracle.diffusers, kind)
    known = inspect.signature(made.__init__).parameters
    return made(**{name: value for name, value in SCHEDULE.items() if name in known}, **settings)


def pipeline(
    family: str, tokenizer: Path, unet: dict | None = None, vae: dict | None = None, text: dict | None = None
) -> Any:
    """A tiny ``StableDiffusionPipeline``: sd1 predicts eps, sd2 predicts v and pads with token 0.

    The three dictionaries change numbers of the models.
    """
    diffusers, transformers = oracle.diffusers, oracle.transformers
    return diffusers.StableDiffusionPipeline(
        vae=oracle.randomize(oracle.vae(**vae or {}), 1),
        text_encoder=oracle.randomize(oracle.text(family, **text or {}), 2),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(save_tokenizer(tokenizer, PAD[family])),
        unet=oracle.randomize(oracle.unet(family, **unet or {}), 3),
        scheduler=diffusers.DDIMScheduler(**SCHEDULE, prediction_type=PREDICTION[family]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_folder(pipe: Any, folder: Path, **options: Any) -> Path:
    """``pipe.save_pretrained`` with what newer libraries write differently put back as the public has it."""
    pipe.save_pretrained(folder, **options)
    wrapped = lambda names: {f"text_model.{name}": value for name, value in names.items()}
    for path in (folder / "text_encoder").glob("*.safetensors"):
        weights = {name: value.clone() for name, value in wrapped(load_file(path)).items()}
        save_file(weights, path, metadata={"format": "pt"})
    for path in (folder / "text_encoder").glob("*.index*.json"):
        index = json.loads(path.read_text())
        path.write_text(json.dumps(index | {"weight_map": wrapped(index["weight_map"])}))
    save_tokenizer(folder / "tokenizer", pipe.tokenizer.pad_token)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    return folder


def as_pickles(folder: Path, legacy: bool = False) -> Path:
    """Turns a public folder's safetensors into the ``.bin`` files that came before them."""
    for path in folder.glob("*/*.safetensors"):
        stem = path.stem.replace("model", "pytorch_model") if path.parent.name == "text_encoder" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"), _use_new_zipfile_serialization=not legacy)
        path.unlink()
    return folder


def pictures(pipe: Any, prompts: list[str], latents: np.ndarray, **options: Any) -> np.ndarray:
    """What diffusers draws from unit noise [N, h, w, 4]: [N, H, W, 3] uint8."""
    height, width = (pipe.vae_scale_factor * side for side in latents.shape[1:3])
    drawn = pipe(prompts, latents=oracle.nchw(latents), output_type="pil", height=height, width=width, **options)
    return np.stack([np.asarray(image) for image in drawn.images])
