"""The verbs; a new one is a line here and, where it composes a configuration, ``conf/VERB.yaml`` with ``conf/hydra/help/VERB.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Verb:
    """What ``posegen VERB`` does.

    Attributes:
        summary: one line for the help.
        target: ``module:function`` that does it.
        takes: the composed configuration, those of its keys that the function's parameters name, or the arguments behind the verb.
    """

    summary: str
    target: str
    takes: Literal["config", "keys", "arguments"] = "config"


VERBS = {
    "train": Verb("train a method: one cell, or with -m a sweep of cells", "posegen.train.loop:train"),
    "sample": Verb("generate images from poses and prompts", "posegen.runner.generate:sample"),
    "transfer": Verb(
        "dress a person as another picture shows, all else exactly as it was", "posegen.verbs.transfer:transfer"
    ),
    "evaluate": Verb("judge a trained method", "posegen.runner.judge:evaluate"),
    "benchmark": Verb(
        "train, sample and judge every method of a benchmark, and make its table",
        "posegen.verbs.benchmark:main",
        "arguments",
    ),
    "table": Verb("make the table of cells that exist", "posegen.report.table:main", "arguments"),
    "report": Verb(
        "make a page of a benchmark that opens without a network: table, curves, pictures",
        "posegen.verbs.report:main",
        "arguments",
    ),
    "power": Verb(
        "how many images and seeds it takes to see a difference between two methods",
        "posegen.verbs.power:main",
        "arguments",
    ),
    "list": Verb(
        "list methods, backbones, data, experiments, ... and what each is", "posegen.config.groups:main", "arguments"
    ),
    "check": Verb(
        "find everything that is wrong with a configuration, without running it",
        "posegen.config.check:main",
        "arguments",
    ),
    "prepare": Verb("check and index the data on your disk, and encode it once", "posegen.verbs.prepare:prepare"),
    "convert": Verb("turn official weights into weights of this project", "posegen.verbs.convert:convert", "keys"),
    "annotate": Verb(
        "find the people of pictures, and write them as a file of poses", "posegen.verbs.annotate:annotate", "keys"
    ),
    "parity": Verb(
        "compare methods with tensors of their official implementations", "posegen.verbs.parity:main", "arguments"
    ),
    "profile": Verb("measure time, memory, parameters and FLOPs of a method", "posegen.verbs.profile:main"),
    "demo": Verb(
        "compare methods in the browser: drag a pose, see every method draw it", "posegen.verbs.demo:main"
    ),
    "completion": Verb("print the completion script of a shell", "posegen.verbs.completion:main", "arguments"),
}
