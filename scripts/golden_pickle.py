"""Makes tests/golden/pickle: PyTorch checkpoints as torch.save writes them, one with a global that must be refused, and their values."""
import collections, json, os, pathlib, zipfile

import torch

OUT = pathlib.Path(__file__).parent.parent / "tests/golden/pickle"
OUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(1)


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(5, 3))
        self.inner = torch.nn.LayerNorm(4)
        self.register_buffer("position_ids", torch.arange(7))


class Evil:
    def __reduce__(self):
        return (os.system, ("touch executed",))


module = Module()
state = module.state_dict()
base = torch.randn(6, 4)
views = collections.OrderedDict(
    f32=base, f16=base.half(), bf16=base.bfloat16(), transposed=base.t(), part=base[2:5], column=base[:, 1],
    scalar=torch.tensor(2.5), parameter=torch.nn.Parameter(torch.randn(3)), empty=torch.zeros(0, 4), f64=base.double(),
)
lightning = {
    "epoch": 3, "global_step": 1234567890123, "pytorch-lightning_version": "1.8.2", "state_dict": state, "loops": {"fit": {"a": [1, 2.5, None, True]}},
    "hparams_name": "kwargs", "hyper_parameters": {"hidden_sizes": [3072, 1024], "layer": "mix", "dropout": 0.1, "nested": ("a", {"b": -5})},
}
torch.save(state, OUT / "module.bin")
torch.save(views, OUT / "views.bin")
torch.save(lightning, OUT / "lightning.ckpt")
torch.save({"weight": base, "evil": Evil()}, OUT / "evil.bin")
torch.save(state, OUT / "legacy.bin", _use_new_zipfile_serialization=False)
values = {"torch": torch.__version__, "files": {}}
for name, tensors in [("module.bin", state), ("views.bin", views), ("lightning.ckpt", state)]:
    values["files"][name] = {
        k: {"shape": list(t.shape) or [1], "values": t.detach().double().flatten().tolist()} for k, t in tensors.items() if t.is_floating_point()
    }
(OUT / "values.json").write_text(json.dumps(values) + "\n")
