"""What `prepare` and `inspect` show of token stores."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rich.table import Table

from chopjax.data.store import TokenStore, verify
from chopjax.data.top_k import find_top_k
from chopjax.data.top_k import verify as verify_top_k
from chopjax.errors import escaped
from chopjax.progress import say
from chopjax.terminal import print_json, show

Stores = Mapping[str, TokenStore]  # by part, as open_stores gives them


def verify_stores(stores: Stores) -> None:
    """Raise UserError where checksums differ."""
    for store in stores.values():
        verify(store)
        if top_k := find_top_k(store):
            verify_top_k(top_k)
        say(f"{store.path}: all checksums as recorded")


def show_stores(stores: Stores, as_json: bool) -> None:
    if as_json:
        print_json({name or "store": _summary(store) for name, store in stores.items()})
    else:
        _print_table(stores)


def _summary(store: TokenStore) -> dict[str, object]:
    return {
        "path": store.path,
        "documents": store.num_documents,
        "tokens": store.num_tokens,
        "loss_tokens": _loss_tokens(store),
        "text_bytes": store.text_bytes,
        "bytes_per_token": store.text_bytes / store.num_tokens,
        "shards": len(store.shards),
        "dtype": store.dtype,
        "tokenizer": store.tokenizer,
        "tokenizer_fingerprint": store.tokenizer_fingerprint,
        "fingerprint": store.fingerprint,
        "teacher": _teacher(store),
    }


def _teacher(store: TokenStore) -> dict[str, object] | None:
    """Who was asked about the tokens, and what."""
    top_k = find_top_k(store)
    if top_k is None:
        return None
    windows = top_k.windows
    return {
        **top_k.teacher,
        "top_k": windows.top_k,
        "sequence_length": windows.sequence_length,
        "mask_documents": windows.mask_documents,
        "bytes": windows.rows * windows.bytes_per_row,
        "fingerprint": top_k.fingerprint,
    }


def _loss_tokens(store: TokenStore) -> int:
    return store.num_tokens if store.weighted_tokens is None else store.weighted_tokens


def _print_table(stores: Stores) -> None:
    table = Table(box=None)
    table.add_column("store")
    for column in ("documents", "tokens", "with loss", "text bytes", "bytes/token", "shards"):
        table.add_column(column, justify="right")
    for store in stores.values():
        table.add_row(
            escaped(os.path.basename(store.path)),
            f"{store.num_documents:,}",
            f"{store.num_tokens:,}",
            f"{_loss_tokens(store):,}",
            f"{store.text_bytes:,}",
            f"{store.text_bytes / store.num_tokens:.3f}",
            f"{len(store.shards)} x {store.dtype}",
        )
    for store in stores.values():
        print(escaped(store.path))
    show(table)
    for store in stores.values():
        if said := _teacher(store):
            masked = ", documents apart" if said["mask_documents"] else ""
            print(
                escaped(
                    f"{os.path.basename(store.path)}: the {said['top_k']} likeliest next tokens by "
                    f"{said['name']} ({said['dtype']}), in windows of {said['sequence_length']}"
                    f"{masked}: {said['bytes']:,} bytes"
                )
            )
