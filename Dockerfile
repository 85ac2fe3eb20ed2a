# docker build -t dearli_d2 .
# docker run --gpus all --ipc host -v $PWD/datasets:/data -v $PWD/output:/home/user/dearli_d2/output dearli_d2 \
#     train --config-file configs/miniworld/m2f_lang.yaml --num-gpus 1
FROM pytorch/pytorch:2.10.0-cuda12.8-cudnn9-runtime

# opencv-python-headless needs glib; make drives the installation; Triton builds its launchers with gcc
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make libglib2.0-0 && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1001 user
USER user
WORKDIR /home/user/dearli_d2
# the requirements first, so that a change of the code does not install everything again
COPY --chown=user Makefile requirements.txt requirements-dev.txt ./
COPY --chown=user scripts scripts
# uses the torch of the base image
RUN make packages
COPY --chown=user . .
RUN make env

ENV DETECTRON2_DATASETS=/data
ENTRYPOINT [".venv/bin/dearli"]
