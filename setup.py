from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent

setup(
    name="lorakit",
    version="0.1.0",
    description="Fine-tune transformer models with LoRA or in full, in plain PyTorch, and measure what it costs.",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["lorakit", "lorakit.*"]),
    package_data={"lorakit.report": ["page.html"]},
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17",
        "datasets>=3.0",
        "seqeval>=1.2.2",
        "scipy>=1.15",  # intervals and the bootstrap of lorakit compare
        "nvidia-ml-py>=12",  # provides the module pynvml; the package named pynvml is its deprecated shell
        "psutil>=5.9",
        "safetensors>=0.5",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "PyYAML>=6.0",
        "jinja2>=3.1",  # the report's page
    ],
    extras_require={
        "bioc": ["bioc>=2.1"],  # BioC corpora
        "completion": ["argcomplete>=3"],  # eval "$(register-python-argcomplete lorakit)"
        "dev": [
            "argcomplete>=3",
            "bioc>=2.1",
            "fastapi>=0.115",  # docs/export.md
            "hypothesis>=6.100",
            "onnx>=1.18",
            "onnxruntime>=1.22",
            "onnxscript>=0.5",
            "optuna>=5",
            "peft>=0.21",
            "pytest-xdist>=3.6",
            "pytest>=8",
            "ruff>=0.6",
            "spacy>=3.8",
            "tensorboard>=2.16",
            "torchao>=0.18",
        ],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"],  # mkdocs build --strict
        "onnx": ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"],  # lorakit export --to onnx
        "peft": ["peft>=0.21"],  # lorakit export --to peft
        "loggers": ["tensorboard>=2.16", "wandb>=0.17"],  # TrainConfig(log_to=...)
        "tune": ["optuna>=5"],  # lorakit tune
        "spacy": ["spacy>=3.8"],  # .spacy corpora, lorakit export --to spacy
        "quantized": ["torchao>=0.18"],  # int8 and nf4 bases, shrink_base
    },
    entry_points={
        "console_scripts": ["lorakit = lorakit.cli.__main__:main"],
        "spacy_factories": ["lorakit_ner = lorakit.export.spacy_pipeline:make_entity_finder"],
        "spacy_tokenizers": ["lorakit.words.v1 = lorakit.export.spacy_pipeline:make_word_tokenizer"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
