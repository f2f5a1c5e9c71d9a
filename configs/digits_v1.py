from configs import default


def get_config():
    c = default.get_config()
    c.data.name = "digits"
    c.model.alpha = 0.25
    c.augment.pad = 2
    c.augment.flip = False
    c.train.batch_size = 64
    c.train.epochs = 30
    c.optim.lr = 0.4
    c.optim.schedule = "one_cycle"
    return c
