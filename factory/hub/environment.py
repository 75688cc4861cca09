"""Settings of libraries that would otherwise fill a log with bars and advice. They are read when
the libraries are imported."""

QUIET = {
    "HF_HUB_VERBOSITY": "error",  # its own retries are told as what came of them
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
