"""What the admin pages are made of; ``syncdata.admin`` registers them."""
