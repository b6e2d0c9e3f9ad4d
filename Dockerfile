# On a CPU, as a user without rights: docker build -t rlhf-lightning . && docker run --rm rlhf-lightning
# The default build of torch carries CUDA; --build-arg INDEX=URL takes it from the index of CPU builds that torch's own page names.
ARG INDEX=
FROM python:3.11-slim
ARG INDEX
RUN useradd --create-home trainer && mkdir /srv/trainer && chown trainer /srv/trainer
USER trainer
WORKDIR /srv/trainer
ENV PATH=/srv/trainer/.venv/bin:$PATH PYTHONUNBUFFERED=1
RUN python -m venv .venv
COPY --chown=trainer constraints.txt ./
RUN pip install --no-cache-dir ${INDEX:+--index-url $INDEX} torch==2.13.0
COPY --chown=trainer pyproject.toml README.md LICENSE ./source/
COPY --chown=trainer conf ./source/conf
COPY --chown=trainer hydra_plugins ./source/hydra_plugins
COPY --chown=trainer rlhf_lightning ./source/rlhf_lightning
RUN pip install --no-cache-dir -c constraints.txt "./source[lora,label]"
CMD ["rlhf-lightning", "trainer=cpu"]
