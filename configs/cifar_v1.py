from configs import default


def get_config():
    c = default.get_config()
    c.optim.lr = 0.4
    c.optim.schedule = "one_cycle"
    c.optim.weight_decay = 5e-4
    return c
