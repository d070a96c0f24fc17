"""How many errors of a run nobody foresaw."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("syncdata", "0005_marks_catalog_head"),
    ]

    operations = [
        migrations.AddField(
            model_name="syncrun",
            name="unexpected_errors",
            field=models.BigIntegerField(db_default=0),
        ),
    ]
