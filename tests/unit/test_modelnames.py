"""What a name on the command line stands for: a table, or a model of the host project."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import models
from django.test import override_settings
from django.test.utils import isolate_apps

from syncdata.changes.names import TableName
from syncdata.errors import SchemaError, WhitelistAddError
from syncdata.modelnames import find_model_of, hints_of_fields, resolve, table_of, tables_of_app


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, type[models.Model]]]:
    """The models of an app "syncsite", which has none of its own, in place of all installed ones."""
    with isolate_apps("syncsite", "django.contrib.auth", "django.contrib.contenttypes") as registry:
        assert registry is not None
        monkeypatch.setattr("syncdata.modelnames.apps", registry)

        class Tag(models.Model):
            class Meta:
                app_label = "syncsite"

        class Base(models.Model):
            class Meta:
                app_label = "syncsite"
                abstract = True

        class Product(Base):
            tags = models.ManyToManyField(Tag)

            class Meta:
                app_label = "syncsite"

        class CheapProduct(Product):
            class Meta:
                app_label = "syncsite"
                proxy = True

        class Legacy(models.Model):
            class Meta:
                app_label = "syncsite"
                managed = False
                db_table = '"erp"."Stock"'

        class Tricky(models.Model):
            class Meta:
                app_label = "syncsite"
                db_table = 'erp"."tricky'

        yield {model.__name__: model for model in registry.get_models()}


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("syncsite.Product", "syncsite_product"),
        ("syncsite.product", "syncsite_product"),
        (" syncsite.Product ", "syncsite_product"),
        ("syncsite.CheapProduct", "syncsite_product"),
        ("syncsite.Legacy", "erp.Stock"),
        ("syncsite.Tricky", "erp.tricky"),
        ("syncsite.Base", "syncsite.Base"),
        ("Syncsite.Product", "Syncsite.Product"),
        ("other.Product", "other.Product"),
        ("product", "product"),
        ('"syncsite"."product"', "syncsite.product"),
    ],
)
def test_a_name_is_a_models_or_a_tables(shop: object, text: str, table: str) -> None:
    assert str(resolve(text, known=())) == table


def test_a_table_that_is_known_is_never_taken_for_a_model(shop: object) -> None:
    known = {TableName("syncsite", "product")}
    assert resolve("syncsite.product", known) == TableName("syncsite", "product")
    assert resolve("syncsite.Product", known) == TableName("public", "syncsite_product")


@pytest.mark.parametrize("text", ["", "a.b.c", "syncsite.", ".Product", 'a"b'])
def test_what_names_nothing_is_refused(shop: object, text: str) -> None:
    with pytest.raises(SchemaError):
        resolve(text, known=())


def test_an_app_stands_for_its_own_tables_and_those_between_them(shop: object) -> None:
    tables = {str(table) for table in tables_of_app("syncsite")}
    assert tables == {
        "syncsite_tag",
        "syncsite_product",
        "syncsite_product_tags",
        "erp.Stock",
        "erp.tricky",
    }


@pytest.mark.parametrize("label", ["nothing", "messages"])
def test_an_app_that_is_not_there_or_has_no_tables_is_refused(label: str) -> None:
    with pytest.raises(WhitelistAddError, match=f"'{label}'"):
        tables_of_app(label)


def test_a_model_that_is_swapped_out_names_its_successor() -> None:
    with override_settings(AUTH_USER_MODEL="accounts.Person"):
        with pytest.raises(SchemaError, match=r"auth.User has no table.*accounts.Person"):
            resolve("auth.User", known=())
        assert "auth_user" not in {str(table) for table in tables_of_app("auth")}
        assert find_model_of(TableName("public", "auth_user")) is None


def test_a_tables_model_is_found_and_never_a_proxy(shop: dict[str, type[models.Model]]) -> None:
    assert find_model_of(TableName("public", "syncsite_product")) is shop["Product"]
    assert find_model_of(TableName("erp", "Stock")) is shop["Legacy"]
    assert find_model_of(TableName("public", "elsewhere")) is None


def test_a_model_whose_table_postgresql_cannot_have_hides_no_other(
    shop: dict[str, type[models.Model]],
) -> None:
    class TooLong(models.Model):
        class Meta:
            app_label = "syncsite"
            db_table = "x" * 70

    with pytest.raises(SchemaError):
        table_of(TooLong)
    assert find_model_of(TableName("erp", "tricky")) is shop["Tricky"]


@pytest.mark.usefixtures("shop")
def test_fields_say_what_their_columns_hold_whatever_they_are_called() -> None:
    class Customer(models.Model):
        contact = models.EmailField(db_column="c")
        state = models.CharField(max_length=1, choices=[("a", "active"), ("b", "barred")])
        notes = models.TextField()

        class Meta:
            app_label = "syncsite"
            db_table = '"shop"."customer"'

    hints = hints_of_fields()[TableName("shop", "customer")]
    assert {column: hint.rule for column, hint in hints.items()} == {"c": "email", "state": "keep"}
    assert "syncsite.Customer" in hints["c"].why
    assert TableName("public", "syncsite_tag") not in hints_of_fields()
