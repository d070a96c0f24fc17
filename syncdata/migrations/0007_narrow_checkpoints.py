"""What seldom changes of a checkpoint moves out of the row that each file writes anew.

All checkpoints move with each file. What production publishes of a table stays as it is: where it makes the
row larger than 2 kB, it moves beside the row, and is not written again. (PostgreSQL moves nothing out of
smaller rows, whatever ``toast_tuple_target`` says: that is how small a row is made once something moves.) The
free half of a page takes the next version of a row, so that no index has to be told of it.
"""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("syncdata", "0006_unexpected_errors"),
    ]

    operations = [
        migrations.RunSQL(
            "ALTER TABLE data_sync_checkpoints SET (toast_tuple_target = 128, fillfactor = 50)",
            "ALTER TABLE data_sync_checkpoints RESET (toast_tuple_target, fillfactor)",
        ),
        migrations.RunSQL(
            "ALTER TABLE data_sync_checkpoints ALTER published SET STORAGE EXTERNAL",
            "ALTER TABLE data_sync_checkpoints ALTER published SET STORAGE EXTENDED",
        ),
    ]
