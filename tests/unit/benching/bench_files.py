"""What the tests of benches compare."""

VIT = {"name": "vit", "size": "T", "patch": [8, 8, 8]}
RESENC = {"name": "resenc", "size": "S"}


def content(**over) -> dict:
    """Two methods and scratch on a transformer, one and scratch on a U-Net."""
    return {
        "datasets": {"a": {}, "b": {}},
        "methods": {
            "mae": {"backbones": ["vit"], "pretrain": {"recipe": "mae-vit-cpu"}},
            "s3d": {"backbones": ["unet"], "pretrain": {"recipe": "s3d-resenc-s-cpu"}},
            "scratch": {},
        },
        "backbones": {
            "vit": {"model": VIT, "finetune": {"recipe": "unetr-vit-cpu"}},
            "unet": {"model": RESENC, "finetune": {"recipe": "resenc-s-cpu"}},
        },
        **over,
    }
