"""What every figure of a GPU is printed with: the card, its driver and power limit, the dense bf16 peak that NVIDIA states."""
import subprocess

# FLOP/s of dense bf16 products, by a part of the name that the driver gives. Others are left out rather than guessed.
PEAKS = {"H100 80GB HBM3": 989e12, "H200": 989e12}


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
