# Two images of one code base: `service` (API, migrations, beat, control worker; no torch) and `worker` (torch, GPU).
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HOME=/tmp
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin troll \
    && install -d -o troll -g troll -m 0700 /data && install -d -m 0755 /models
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service ./service
COPY workers ./workers
COPY troll ./troll
COPY migrations ./migrations
# What the service imports, and not the torch that the package itself requires.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['service'], sep='\n')" > /tmp/service.txt \
    && pip install -c constraints.txt -r /tmp/service.txt && pip install --no-deps . && rm /tmp/service.txt

FROM base AS service
USER troll
EXPOSE 8000
CMD ["uvicorn", "--factory", "service.app:create_app", "--host", "0.0.0.0", "--port", "8000", \
     "--http", "service.core.connections:Connection", "--ws", "none"]

FROM base AS worker
# Triton compiles its kernel launchers with the C compiler when they are first used.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && pip install -c constraints.txt '.[worker,graders,wandb,trackio]'
USER troll
CMD ["celery", "-A", "workers.app", "worker", "-Q", "training", "--pool", "threads", "-c", "1"]
