"""The bijection of names at full size, on abstract tensors: ours, the folder's, the single file's, in seconds.

Two rename tables of ours must meet at the same tensor wherever diffusers' converter says that it is one.
"""

import pytest

from ldm.models.autoencoder import VAE
from ldm.models.text import TextTower
from ldm.models.unet import UNet
from weights_convert.tables import autoencoder, text, unet

from . import layouts, oracle, ours

UNETS = {
    "sd1": ("sd1", 4, 859_520_964),
    "sd1 inpainting": ("sd1", 9, 859_535_364),
    "sd1 with a picture": ("sd1", 8, 859_532_484),
    "sd2": ("sd2", 4, 865_910_724),
    "sd2 inpainting": ("sd2", 9, 865_925_124),
    "sdxl": ("sdxl", 4, 2_567_463_684),
}


@pytest.mark.parametrize("family", UNETS)
def test_unet(family: str):
    name, channels, parameters = UNETS[family]
    model = oracle.unet(name, full=True, in_channels=channels)
    assert sum(p.numel() for p in model.parameters()) == parameters
    config = unet.config_from_json(model.config, "the oracle")
    single = ours.tensors(layouts.unet_file(model), layouts.UNET)
    assert unet.config_from_shapes(single) == config
    spellings = [unet.folder(config), unet.single_file(config)]
    in_folder = ours.bijection(UNet, config, ours.tensors(model.state_dict()), spellings)
    in_file = ours.bijection(UNet, config, single, spellings)
    theirs = layouts.unet_names(model)
    assert in_file == {ours_: theirs[public].removeprefix(layouts.UNET) for ours_, public in in_folder.items()}


def test_autoencoder():
    model = oracle.vae(full=True)
    assert sum(p.numel() for p in model.parameters()) == 83_653_863
    config = autoencoder.config_from_json(model.config, "the oracle")
    single = ours.tensors(layouts.vae_file(model), layouts.VAE)
    assert autoencoder.config_from_shapes(single) == config
    spellings = autoencoder.layouts(config)
    in_folder = ours.bijection(VAE, config, ours.tensors(model.state_dict()), spellings)
    in_file = ours.bijection(VAE, config, single, spellings)
    theirs = layouts.vae_names(model)
    assert in_file == {ours_: theirs[public].removeprefix(layouts.VAE) for ours_, public in in_folder.items()}


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_text_tower(family: str):
    model = oracle.text(family, full=True)
    config = text.config_from_json(model.config.to_dict(), False, "the oracle")
    in_folder = ours.bijection(TextTower, config, ours.tensors(model.state_dict()), text.layouts(config))
    theirs = layouts.open_clip_names(model)
    openclip = {name: text.openclip(config).public(name) for name in in_folder}
    cut = lambda name, third: f"{name}#{third}" if "in_proj" in name else name
    assert openclip == {
        ours_: cut(*theirs[public]).removeprefix(layouts.OPEN_CLIP) for ours_, public in in_folder.items()
    }
