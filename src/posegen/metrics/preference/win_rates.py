"""Which of two pictures of one caption people would prefer, told by a network, against those of the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from posegen.data.base import Sample
from posegen.metrics.base import BASELINE, Column, Estimator, Judged, Metric, Notes, Observer, Records, Values
from posegen.metrics.math.statistics import mean_of_known, wins
from posegen.metrics.preference.networks import PreferenceNetwork
from posegen.metrics.quality import QualityProtocol


class Preferences(Observer):
    """Notes ``<name>_score``, what each network that has weights gives to a picture and its caption.

    ``networks`` is name of a column -> network."""

    def __init__(self, networks: Mapping[str, PreferenceNetwork]) -> None:
        self.networks = {name: network for name, network in networks.items() if network.configured}

    def check(self) -> None:
        for network in self.networks.values():
            network.check()

    def observe(self, images: Tensor, samples: Sequence[Sample], estimator: Estimator, real: bool) -> Notes:
        if real:  # a score belongs to a caption, not to a set
            return [{} for _ in samples]
        captions = [sample.prompt for sample in samples]
        with torch.no_grad():
            found = {f"{name}_score": network.scores(images, captions) for name, network in self.networks.items()}
        return [{name: float(values[i]) for name, values in found.items()} for i in range(len(samples))]


class WinRateMetric(Metric):
    """``<name>_wins``: the share of images, in percent, that score higher than the baseline's image of the same
    caption, pose and noise, where equal scores count half. The baseline itself has 50, which a row is tested against.

    A mean of the scores would compare captions with each other, which the networks were not trained for."""

    against = True

    def __init__(self, name: str, setting: str) -> None:
        self.name, self.setting = f"{name}_score", setting
        remark = "images that score higher than the baseline's; ties half"
        self.column = Column(f"{name}_wins", family="preference", axis=0, unit="%", remark=remark)
        self.columns = (self.column,)

    def absent(self, records: Records) -> dict[str, str]:
        if self.name not in records:
            return {self.column: f"the network is not configured: set {self.setting}"}
        beside = f"{BASELINE}{self.name}" in records
        reason = "there is no baseline with the same images and seeds to compare with: see baseline="
        return {} if beside else {self.column: reason}

    def record(self, judged: Judged) -> dict[str, float]:
        return {self.name: judged.observed[self.name]} if self.name in judged.observed else {}

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        theirs = records.get(f"{BASELINE}{self.name}")
        if self.name not in records or theirs is None:
            return {self.column: np.full(len(weights), np.nan)}
        share = wins(np.asarray(records[self.name]) - np.asarray(theirs))
        return {self.column: mean_of_known(share.tolist(), weights, 100)}


class PreferenceProtocol(QualityProtocol):
    """A `QualityProtocol` of win rates."""

    note = "Win rates are over the baseline's image of the same caption, pose and seed; 50 % is no difference."
