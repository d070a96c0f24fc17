from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("syncdata", "0001_initial"),
    ]

    operations = [
        migrations.AlterField(
            model_name="synclog",
            name="action",
            field=models.TextField(
                choices=[
                    ("sync", "sync"),
                    ("resync", "resync"),
                    ("clear", "clear"),
                    ("snapshot", "snapshot"),
                ],
                db_default="sync",
            ),
        ),
    ]
