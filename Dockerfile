# docker build -t dearli_d2 .
# docker run --gpus all --ipc host -v $PWD/datasets:/data -v $PWD/output:/home/user/dearli_d2/output dearli_d2 \
#     train --config-file configs/miniworld/m2f_lang.yaml --num-gpus 1
#
# The packages are those that the tests passed with. torch brings CUDA 13, which needs NVIDIA's driver 580 or later. With an
# older driver, build with PYTHON 3.10 and CONSTRAINTS constraints/oldest.txt, whose torch brings CUDA 12.8.
ARG PYTHON=3.13
FROM python:${PYTHON}-slim
ARG CONSTRAINTS=constraints/newest.txt

# Triton builds its launchers with gcc; make drives the installation
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1001 user
USER user
WORKDIR /home/user/dearli_d2
# the requirements first, so that a change of the code does not install everything again
COPY --chown=user Makefile requirements.txt requirements-dev.txt ./
COPY --chown=user constraints constraints
COPY --chown=user scripts scripts
RUN make packages CONSTRAINTS=${CONSTRAINTS}
COPY --chown=user . .
RUN make env CONSTRAINTS=${CONSTRAINTS}

ENV DETECTRON2_DATASETS=/data
ENTRYPOINT [".venv/bin/dearli"]
