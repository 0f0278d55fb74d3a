"""What a step minimises with a teacher.

With a = teacher.logits, t = teacher.temperature and the weights of TeacherSettings:

    (1 - a)·next-token loss + a·t²·KL(teacher ‖ student)
    + hidden    · Σ_i |H_t[map i] - H_s[i]·W_i|²     states behind layers     Just CHOP, eq. 8
    + attention · Σ_i |A_t[map i] - A_s[i]·W_i|²     attention's output       Just CHOP, eq. 9
    + embedding · |E_t - E_s·W|²                     embedding tables         Just CHOP, eq. 10
    + mimic     · Σ_g |x_t[g] - x_s[g]|²             streams behind gaps      Deeper Layers, eq. 8

(arXiv 2305.14864v3, section 3.3; arXiv 2403.17887, footnote 9). The papers give the squares and no
more; here |·|² is a mean over the width and over the tokens, by their weights (over the table's
entries for the embeddings), and layers add up. Just CHOP does not say whether A is attention's
output or its probabilities; it is the output here, which needs no array of T x T, before any norm,
scale or sum. States are those before the final norm. A gap is where the map leaves layers out: what
enters the teacher's first layer behind it is held beside what enters the student's, or, where the
last layers are gone, what leaves both stacks; layers left out before the first have no term, as
nothing of the student's comes before. A map W is learned where the two widths differ, and
is not there where they are the same.

Each model's stack is walked once. Of the teacher the layers that are held beside others leave their
states; the student adds up its terms on its way.

Axes: B batch, T time, D model, E what the head reads, L the student's layers, P layers of the
teacher that are looked at, V vocabulary, M the teacher's width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chopjax.keep import Keep
from chopjax.models import decoder
from chopjax.models.adapters import student
from chopjax.models.chunks import chunk_of
from chopjax.models.compute import Compute
from chopjax.models.config import ModelConfig
from chopjax.models.distilled_loss import TopK, Whole, distilled_cross_entropy
from chopjax.models.head import head_of
from chopjax.models.linear import linear
from chopjax.models.loss import cross_entropy
from chopjax.models.mesh import BATCH_AXES, constrain
from chopjax.models.parameters import Params
from chopjax.models.remat import POLICIES
from chopjax.models.taps import tapped
from chopjax.train import projections
from chopjax.train.objectives import compute_of
from chopjax.train.settings import Settings, TeacherSettings
from chopjax.train.step import Batch, Metrics, Objective
from chopjax.train.teacher import Teacher, compares_layers


class Term(NamedTuple):
    """One of the sums over layers: what of the student is held beside what of the teacher.

    layers: of the teacher, one for each of the student's, -1 for none.
    """

    name: str
    weight: float
    of_attention: bool
    layers: tuple[int, ...]

    @property
    def tapped(self) -> tuple[int, ...]:
        """The teacher's layers, each once, ascending."""
        return tuple(sorted(set(self.layers) - {-1}))


def terms_of(asked: TeacherSettings, taught_by: Keep, depth: int) -> list[Term]:
    """depth: the teacher's layers. taught_by: which of them teaches which of the student's."""
    behind = [layer - 1 for layer in (*taught_by[1:], depth)]  # the teacher's, before the next one
    gaps = tuple(last if last != own else -1 for own, last in zip(taught_by, behind, strict=True))
    terms = [
        Term("hidden", asked.hidden, False, taught_by),
        Term("attention", asked.attention, True, taught_by),
        Term("mimic", asked.mimic, False, gaps),
    ]
    return [term for term in terms if term.weight and term.tapped]


def distilled(config: ModelConfig, settings: Settings, teacher: Teacher) -> Objective:
    """The objective above, with the teacher's parameters as frozen["teacher"].

    Metrics, each before its weight: `loss`, the student's next-token loss, and `kl` in nats at the
    temperature; `hidden`, `attention`, `embedding`, `mimic`; those that are asked for.
    """
    asked, compute = settings.teacher, compute_of(settings)
    taught_by = teacher.layers_of(config.num_layers)
    terms: list[Term] = []
    if compares_layers(asked):
        assert taught_by is not None
        terms = terms_of(asked, taught_by, teacher.config.num_layers)

    def objective(trainable: Params, frozen: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        params = student(trainable, frozen, batch, settings.adapter, settings.masks == "fixed")
        maps, masked = projections.of(trainable), settings.data.mask_documents
        segments_BT = batch["segments"] if masked else None
        positions_BT = batch["positions"] if masked else None
        places = (batch["tokens"], segments_BT, positions_BT)
        teachers = jax.lax.stop_gradient(frozen["teacher"])
        taught = tapped(
            teachers,
            teacher.config,
            compute,
            *places,
            states=_tapped(terms, of_attention=False),
            attended=_tapped(terms, of_attention=True),
        )
        states = {False: taught.states_PBTD, True: taught.attended_PBTD}
        hidden_BTE, metrics = _student_pass(
            params, config, compute, places, terms, states, maps.get("blocks", {}), batch["weights"]
        )
        head, targets, weights = head_of(params, config), batch["targets"], batch["weights"]
        z_loss, chunk = settings.optimizer.z_loss, chunk_of(settings.compute.loss_chunk)
        if asked.logits:
            theirs = Whole(taught.hidden_BTE, head_of(teachers, teacher.config))
            total, nll, kl = distilled_cross_entropy(
                hidden_BTE, head, theirs, targets, weights,
                asked.logits, asked.temperature, z_loss, chunk,
            )  # fmt: skip
            metrics["kl"] = kl
        else:
            total, nll = cross_entropy(hidden_BTE, head, targets, weights, z_loss, chunk)
        if asked.embedding:
            apart = _tables_apart(params, teachers, maps.get("embedding"))
            metrics["embedding"] = jnp.sum(weights) * apart
        weight_of = {term.name: term.weight for term in terms} | {"embedding": asked.embedding}
        total += sum(weight * metrics[name] for name, weight in weight_of.items() if weight)
        return total, {"loss": nll, **metrics}

    return objective


def from_top_k(config: ModelConfig, settings: Settings) -> Objective:
    """(1 - a)·next-token loss + a·KL(teacher ‖ student), the teacher by its likeliest tokens, which
    come with the batch: top_tokens [B, T, K] int32 and top_log_probs [B, T, K]. What these leave of
    1 is one bucket, the tail's. Metrics: `loss` and `kl`."""
    compute = compute_of(settings)

    def objective(trainable: Params, frozen: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        params = student(trainable, frozen, batch, settings.adapter, settings.masks == "fixed")
        masked = settings.data.mask_documents
        hidden_BTE = decoder.hidden_states(
            params,
            config,
            compute,
            batch["tokens"],
            batch["segments"] if masked else None,
            batch["positions"] if masked else None,
        )
        total, nll, kl = distilled_cross_entropy(
            hidden_BTE,
            head_of(params, config),
            TopK(batch["top_tokens"], batch["top_log_probs"]),
            batch["targets"],
            batch["weights"],
            settings.teacher.logits,
            1.0,
            settings.optimizer.z_loss,
            chunk_of(settings.compute.loss_chunk),
        )
        return total, {"loss": nll, "kl": kl}

    return objective


# ------------------------------------------------------------------------------ Parts of the above


def _tapped(terms: list[Term], of_attention: bool) -> tuple[int, ...]:
    """The teacher's layers of all terms that look at its states, or at its attention."""
    found = {layer for term in terms if term.of_attention == of_attention for layer in term.tapped}
    return tuple(sorted(found))


def _student_pass(
    params: Params,
    config: ModelConfig,
    compute: Compute,
    places: tuple[Any, Any, Any],
    terms: list[Term],
    taught: dict[bool, jax.Array | None],
    maps: Params,
    weights_BT: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """The student's pass: what its head reads, and the terms, by name.

    taught: of_attention → what the teacher's tapped layers left, [P, B, T, M]. maps: a term's name
    → what takes the student's width to the teacher's, [L, D, M], where they differ.
    """
    tokens_BT, segments_BT, positions_BT = places
    if not terms:
        return decoder.hidden_states(params, config, compute, *places), {}
    if positions_BT is None:
        positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    parts = decoder.parts(params, config, compute, positions_BT, segments_BT)
    order = {side: _tapped(terms, side) for side in (False, True)}
    slots, is_held = {}, {}
    for term in terms:
        held_L = np.array(term.layers) >= 0
        places_L = np.searchsorted(order[term.of_attention], term.layers)
        slots[term.name] = jnp.asarray(np.where(held_L, places_L, 0), jnp.int32)
        is_held[term.name] = jnp.asarray(held_L, jnp.float32)

    def step(carry: Any, xs: Any) -> tuple[Any, None]:
        hidden_BTD, sums = carry
        layer, slots, is_held, maps = xs
        hidden_BTD, attended_BTD = parts.opened(hidden_BTD, layer)
        moved = dict(sums)
        for term in terms:
            theirs = taught[term.of_attention]
            assert theirs is not None
            wanted_BTM = jax.lax.dynamic_index_in_dim(theirs, slots[term.name], 0, keepdims=False)
            ours_BTD = attended_BTD if term.of_attention else hidden_BTD
            with jax.default_matmul_precision(compute.precision):
                apart_B = _apart(ours_BTD, wanted_BTM, maps.get(term.name), weights_BT)
            moved[term.name] += is_held[term.name] * apart_B
        return (hidden_BTD, moved), None

    if compute.remat != "none":
        step = jax.checkpoint(step, policy=POLICIES[compute.remat], prevent_cse=False)
    hidden_BTD = parts.embed(tokens_BT)
    # By row, so that devices need not agree on a sum in every layer.
    zeros_B = constrain(jnp.zeros(tokens_BT.shape[0], jnp.float32), BATCH_AXES)
    start = (hidden_BTD, {term.name: zeros_B for term in terms})
    (hidden_BTD, sums), _ = jax.lax.scan(
        step, start, (parts.stack, slots, is_held, maps), unroll=compute.layers == "unrolled"
    )
    return parts.finish(hidden_BTD), {name: jnp.sum(sum_B) for name, sum_B in sums.items()}


def _apart(
    ours_BTD: jax.Array,
    theirs_BTM: jax.Array,
    projection_DM: jax.Array | None,
    weights_BT: jax.Array,
) -> jax.Array:
    """Σ_t w·mean over the width of (theirs - ours·W)², [B] float32."""
    if projection_DM is not None:
        ours_BTD = linear(ours_BTD, projection_DM)
    difference = theirs_BTM.astype(jnp.float32) - ours_BTD.astype(jnp.float32)
    return jnp.sum(weights_BT * jnp.square(difference).mean(axis=-1), axis=1)


def _tables_apart(params: Params, teachers: Params, projection: jax.Array | None) -> jax.Array:
    """Mean over the entries of (E_t - E_s·W)²."""
    ours, theirs = (tree["embed"]["embedding"] for tree in (params, teachers))
    wide = jnp.promote_types(ours.dtype, jnp.float32)
    ours = ours.astype(wide)
    if projection is not None:
        ours = jnp.matmul(ours, projection.astype(wide), precision="highest")
    return jnp.mean(jnp.square(theirs.astype(wide) - ours))
