# Not built in CI. PIP_OPTIONS may name an index of PyTorch's smaller CPU builds, as --extra-index-url.
# docker build -t vita-mctp . && docker run --rm -p 127.0.0.1:8000:8000 vita-mctp
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends ffmpeg && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY vita_mctp vita_mctp
ARG PIP_OPTIONS=
RUN pip install --no-cache-dir $PIP_OPTIONS -c constraints.txt ".[serve]"
RUN useradd --create-home serving
USER serving
ENV OMP_NUM_THREADS=1
EXPOSE 8000
HEALTHCHECK CMD python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready')"
ENTRYPOINT ["vita-mctp", "serve", "--host", "0.0.0.0"]
