"""What every figure of a GPU is printed with: the card, its driver and power limit."""
import subprocess


def torch_device(name):
    """`name` if it is a GPU that PyTorch finds, else "cpu": the other side may run on an emulated GPU. Every result says which it was."""
    import torch
    return name if name.startswith("cuda") and torch.cuda.is_available() else "cpu"


def card(device):
    """{"device", "driver", "power_limit"} of a CUDA device; without one, or without nvidia-smi, what is known."""
    import torch
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return {"device": device, "driver": None, "power_limit": None}
    found = {"device": torch.cuda.get_device_name(device), "driver": None, "power_limit": None}
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
        line = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.splitlines()[0]
        found["driver"], found["power_limit"] = (x.strip() for x in line.split(","))
    except (OSError, IndexError, ValueError, subprocess.TimeoutExpired):
        pass
    return found
