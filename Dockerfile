# A container with everything set up: docker build -t tunebook . && docker run -p 8888:8888 tunebook
# Its one step of our own is the set-up that a machine without a container takes, too (docs/workshop.md).
FROM rust:1.95-bookworm AS base

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home learner \
    && install --directory --owner=learner /tunebook /home/learner/.jupyter
# The image has this compiler; rustup would fetch the channel that rust-toolchain.toml names besides.
ENV RUSTUP_TOOLCHAIN=1.95.0
# A container's own localhost is not reached from outside. Jupyter asks for its token all the same.
RUN echo "c.ServerApp.ip = '0.0.0.0'" > /home/learner/.jupyter/jupyter_server_config.py
USER learner
WORKDIR /tunebook

FROM base
COPY --chown=learner . .
RUN cargo xtask setup
EXPOSE 8888
CMD ["cargo", "xtask", "lab", "--no-browser", "--port=8888"]
