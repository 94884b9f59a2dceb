# For a CPU:      docker build -t dbae .
# For CUDA:       docker build -t dbae --build-arg INDEX=https://pypi.org/simple .     (run with --gpus all --shm-size 8g)
# To use:         docker run --rm -it -v "$PWD/workdir:/dbae/workdir" -v "$PWD/data:/dbae/data" dbae bash demo.sh --pretrained
# This file was read, not built: the machines at hand have no Docker daemon.
FROM python:3.12-slim

# Where PyTorch comes from: PyPI's build for Linux carries CUDA
ARG INDEX=https://download.pytorch.org/whl/cpu

# torch.compile wants a C++ compiler
RUN apt-get update && apt-get install -y --no-install-recommends git g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /dbae
COPY requirements*.txt ./
# Into .venv with the stamp of scripts/environment.sh, so that demo.sh installs nothing again
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir torch==2.13.0 torchvision==0.28.0 --index-url "$INDEX" \
    && .venv/bin/pip install --no-cache-dir -r requirements.txt \
    && cat requirements*.txt > .venv/installed-requirements.txt
ENV PATH=/dbae/.venv/bin:$PATH

COPY . .
RUN pip install --no-cache-dir --no-deps -e .
CMD ["bash"]
