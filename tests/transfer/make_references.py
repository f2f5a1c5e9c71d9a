"""Record what the official libraries compute, for the tests. Each command names the packages that it needs.

    python tests/transfer/make_references.py litert TFLITE_DIR IMAGES LABELS.csv results/bench/official/litert.json
    python tests/transfer/make_references.py keras KERAS_DIR IMAGES LABELS.csv
    python tests/transfer/make_references.py tiny | slim | slim_views | torch | torch_views

`litert` (ai-edge-litert): the best class of each image, and the accuracy, of each quantised network. `keras`
(tf_keras): the logits of 20 images of each network. `tiny` (tensorflow, tf_keras, keras): a small v1 in Keras's and
TensorFlow Lite's formats, and its logits. `slim` (tensorflow): checkpoints with TF-slim's names, with moving averages
and an optimiser's variables. `torch` (torch, torchvision, timm, transformers): logits of networks with seeded tensors.
`*_views` (tensorflow; torchvision): small evaluation views.
"""

import csv
import io
import json
import lzma
import os
import pathlib
import sys
import tarfile
import tempfile
import time

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import numpy as np
import transfer_helpers as helpers

from mobilenet_jax.data import decoding, views


def listed(labels):
    with open(labels, encoding="utf-8") as file:
        return [(row["file"], int(row["label"])) for row in csv.DictReader(file)]


def pack(name, folder):
    with tarfile.open(helpers.DATA / name, "w:xz") as archive:
        for path in sorted(pathlib.Path(folder).glob("*.*")):
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            archive.addfile(member, io.BytesIO(path.read_bytes()))


def litert(folder, images, labels, out):
    from ai_edge_litert.interpreter import Interpreter

    pictures = [(decoding.read(pathlib.Path(images, name)), label) for name, label in listed(labels)]
    networks = {}
    for path in sorted(pathlib.Path(folder).glob("*.tflite")):
        start = time.perf_counter()
        interpreter = Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
        (into,), (outof,) = interpreter.get_input_details(), interpreter.get_output_details()
        best, top1, top5 = [], 0, 0
        for image, label in pictures:
            interpreter.set_tensor(into["index"], views.slim(image, into["shape"][1])[None])
            interpreter.invoke()
            order = np.argsort(-interpreter.get_tensor(outof["index"])[0].astype(int), kind="stable")[:5]
            best.append(int(order[0]))
            top1 += int(order[0] == label + 1)
            top5 += int(label + 1 in order)
        count = len(pictures)
        networks[path.stem] = {"top1": top1 / count, "top5": top5 / count, "n": count, "classes": best}
        print(path.stem, top1 / count, f"{time.perf_counter() - start:.0f} s", flush=True)
    text = json.dumps({"protocol": "slim", "runtime": "ai-edge-litert 2.3.0", "networks": networks})
    pathlib.Path(out).write_text(text.replace('}, "', '},\n"') + "\n", encoding="utf-8")


def keras(folder, images, labels):
    import tf_keras

    names = [name for name, _ in listed(labels)[:20]]
    pictures = np.stack([views.read(pathlib.Path(images, name), "slim", 224) for name in names])
    found = {"files": np.array(names)}
    for path in sorted(pathlib.Path(folder).glob("*.h5")):
        logits = _without_softmax(tf_keras, tf_keras.models.load_model(path, compile=False))
        found[path.stem] = logits.predict(pictures.astype(np.float32) / 127.5 - 1, verbose=0).reshape(len(names), -1)
    np.savez_compressed(helpers.DATA / "keras_logits.npz", **found)


def _without_softmax(library, model):
    last = model.layers[-1]
    if not isinstance(last, library.layers.Dense):
        return library.Model(model.input, last.input)
    last.activation = library.activations.linear
    return library.Model(model.input, last(model.layers[-2].output))


def _small_v1(library):
    """Return a v1 with 8 channels in each layer and 5 classes, built as Keras builds its own."""
    layers = library.layers

    def normal(x):
        return layers.ReLU(6.0)(layers.BatchNormalization()(x))

    image = layers.Input((64, 64, 3))
    x = normal(layers.Conv2D(8, 3, 2, "same", use_bias=False)(image))
    for i in range(1, 14):
        strided = i in (2, 4, 6, 12)
        x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x) if strided else x
        x = layers.DepthwiseConv2D(3, 1 + strided, "valid" if strided else "same", use_bias=False)(x)
        x = normal(layers.Conv2D(8, 1, use_bias=False)(normal(x)))
    x = layers.Dense(5, activation="softmax")(layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x)))
    return library.Model(image, x)


def tiny():
    import keras
    import tensorflow as tf
    import tf_keras

    rng = np.random.default_rng(0)
    model = _small_v1(tf_keras)
    for layer in model.layers:
        if layer.weights:
            norm = isinstance(layer, tf_keras.layers.BatchNormalization)
            limits = [(0.8, 1.6), (-0.2, 0.6), (-0.2, 0.2), (0.2, 0.6)] if norm else [(-0.8, 0.8)] * 2
            pairs = zip(layer.get_weights(), limits, strict=False)
            layer.set_weights([rng.uniform(*limit, array.shape).astype(np.float32) for array, limit in pairs])
    pictures = helpers.images(8, 64)
    inputs = pictures.astype(np.float32) / 127.5 - 1
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/whole.h5")
        model.save_weights(f"{folder}/weights.h5")
        copy = _small_v1(keras)
        copy.set_weights(model.get_weights())
        copy.save(f"{folder}/whole.keras")
        for name in ("float", "int8"):
            converter = tf.lite.TFLiteConverter.from_keras_model(model)
            if name == "int8":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.representative_dataset = lambda: ([each[None]] for each in inputs)
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                converter.inference_input_type = tf.uint8
            pathlib.Path(folder, f"{name}.tflite").write_bytes(converter.convert())
        logits = _without_softmax(tf_keras, model).predict(inputs, verbose=0)
        np.savez_compressed(pathlib.Path(folder, "logits.npz"), logits=logits)
        pack("tiny.tar.xz", folder)
    print(logits.std(0), sorted(set(logits.argmax(1))), os.path.getsize(helpers.DATA / "tiny.tar.xz"))


def slim():
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    with tempfile.TemporaryDirectory() as folder:
        for version in ("v1", "v2"):
            with tf.Graph().as_default(), tf.Session() as session:
                tf.train.create_global_step()
                for number, (name, shape) in enumerate(helpers.slim_tensors(version).items()):
                    suffixes = ["", "/ExponentialMovingAverage"]
                    suffixes += [] if "moving" in name else ["/RMSProp", "/RMSProp_1"]
                    for kind, suffix in enumerate(suffixes):
                        tf.get_variable(name + suffix, initializer=helpers.slim_value(number, kind, shape))
                session.run(tf.global_variables_initializer())
                tf.train.Saver().save(session, f"{folder}/{version}.ckpt", write_meta_graph=False)
        pack("slim.tar.xz", folder)


SIZES = ((30, 20), (33, 47), (64, 64), (9, 50))  # height and width


def pictures_of_views():
    return [helpers.images(1, 64)[0, :height, :width] for height, width in SIZES]


def slim_views():
    import tensorflow.compat.v1 as tf

    found = {}
    for i, image in enumerate(pictures_of_views()):
        x = tf.image.central_crop(tf.image.convert_image_dtype(image, tf.float32), 0.875)
        found[str(i)] = tf.image.resize_bilinear(x[None], [16, 16], align_corners=False)[0].numpy() * 255
    np.savez_compressed(helpers.DATA / "slim_views.npz", **found)


def torch_views():
    from PIL import Image
    from torchvision import transforms

    view = transforms.Compose([transforms.Resize(18), transforms.CenterCrop(16)])
    found = {str(i): np.asarray(view(Image.fromarray(image))) for i, image in enumerate(pictures_of_views())}
    np.savez_compressed(helpers.DATA / "torch_views.npz", **found)


def torch():
    import timm
    import torch
    import torchvision
    import transformers as hf

    networks = {"torchvision_v2": (torchvision.models.mobilenet_v2(width_mult=0.35, num_classes=7), {})}
    for name in ("mobilenetv1_100", "mobilenetv2_035"):
        model = timm.create_model(name, num_classes=7)
        networks[f"timm_{name}"] = (model, {k: list(model.pretrained_cfg[k]) for k in ("mean", "std")})
    for same in (True, False):
        settings = {"tf_padding": same, "num_labels": 7, "depth_multiplier": 0.35 if same else 0.5}
        models = {
            "v1": hf.MobileNetV1ForImageClassification(hf.MobileNetV1Config(**settings)),
            "v2": hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(**settings)),
        }
        for version, model in models.items():
            networks[f"hf_{version}_{'same' if same else 'symmetric'}"] = (model, {"tf_padding": same})
    found = {}
    for name, (model, config) in networks.items():
        shapes = {key: list(each.shape) for key, each in model.state_dict().items() if each.ndim}
        model.load_state_dict({k: torch.tensor(helpers.tensor(k, s)) for k, s in shapes.items()}, strict=False)
        if name.startswith("hf"):
            mean, std = [0.5] * 3, [0.5] * 3
        else:
            mean, std = config.get("mean", [0.485, 0.456, 0.406]), config.get("std", [0.229, 0.224, 0.225])
        x = (helpers.images(2, 64) / 255 - mean) / std
        with torch.no_grad():
            result = model.eval()(torch.tensor(x.transpose(0, 3, 1, 2).astype(np.float32)))
        logits = getattr(result, "logits", result).numpy().tolist()
        found[name] = {"shapes": shapes, "config": config, "logits": logits}
        print(name, np.abs(logits).max())
    (helpers.DATA / "torch.json.xz").write_bytes(lzma.compress(json.dumps(found).encode()))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
