"""Passwords leave addresses and texts; everything else of them stays as it was."""

from __future__ import annotations

import pytest

from chitransfer.secrecy import mask_passwords, strip_password


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("postgresql://ann:s3cret@db:5432/chi", "postgresql://ann@db:5432/chi"),
        ("postgresql://ann:s3cret@db/chi?sslmode=require", "postgresql://ann@db/chi?sslmode=require"),
        ("postgresql://ann:a%40b%3Fc%23@db/chi", "postgresql://ann@db/chi"),
        ("postgresql://ann:p@ss:w@db/chi", "postgresql://ann@db/chi"),
        ("postgresql://ann:a?b#c/d@db/chi?sslmode=require", "postgresql://ann@db/chi?sslmode=require"),
        ("postgresql://:s3cret@db/chi", "postgresql://@db/chi"),
        ("postgresql://ann:s3cret@[::1]:5432/chi", "postgresql://ann@[::1]:5432/chi"),
        ("postgresql://u@h/db?password=x&sslmode=require", "postgresql://u@h/db?sslmode=require"),
        ("postgresql://u@h/db?sslmode=require&password=x&a=b", "postgresql://u@h/db?sslmode=require&a=b"),
        ("postgresql://u@h/db?sslmode=require&password=x", "postgresql://u@h/db?sslmode=require"),
        ("postgresql://u@h/db?password=x", "postgresql://u@h/db"),
        ("postgresql://u@h/db?password=a%26b%3Dc&sslmode=require", "postgresql://u@h/db?sslmode=require"),
        ("postgresql://u@h/db?pass%77ord=x&sslmode=require", "postgresql://u@h/db?sslmode=require"),
        ("postgresql://u@h/db?password=a@b", "postgresql://u@h/db"),
        ("postgresql:///db?host=/var/run&password=x", "postgresql:///db?host=/var/run"),
        ("postgresql+psycopg://u:p@h/db?password=x", "postgresql+psycopg://u@h/db"),
        ("postgresql://u@h/db?sslpassword=x&sslkey=k%20y", "postgresql://u@h/db?sslpassword=x&sslkey=k%20y"),
    ],
)
def test_only_the_password_is_taken_out(address: str, kept: str) -> None:
    assert strip_password(address) == kept


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u@h/db",
        "postgresql://h/db?sslmode=verify-full&options=-c%20x%3D1",
        "sqlite:////data/my study/a?b=c&password.db",
        "sqlite:////data/100%25 #1/study.db",
        "sqlite:///file:/data/a%3Fb.db?uri=true",
    ],
)
def test_what_has_none_is_untouched(address: str) -> None:
    assert strip_password(address) == address


def test_texts_are_masked() -> None:
    text = "cannot reach postgresql://ann:s3cret@db/chi?password=x&sslmode=require"
    assert mask_passwords(text) == "cannot reach postgresql://ann:***@db/chi?password=***&sslmode=require"
