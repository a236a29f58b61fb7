// Runs the generator, and the encoder where there is one, with onnxruntime-web from bytes that the page carries.

/** Unpack what a page or a notebook carries. `read(name)` gives the bytes of a part, packed with gzip. */
export async function unpackParts(read, manifest) {
  const unpack = async (name) => {
    const stream = new Blob([read(name)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const names = ["runtime", "wasm", "model", "starts", "steps"];
  const [runtime, wasm, model, starts, steps] = await Promise.all(names.map(unpack));
  return {
    runtime: new TextDecoder().decode(runtime), wasm: wasm.buffer, model,
    starts: new Float32Array(starts.buffer), steps: new Float32Array(steps.buffer),
    encoder: manifest.encoder ? await unpack("encoder") : null,
  };
}

/** Open the networks. `parts`: runtime (text), wasm, model, encoder (bytes; encoder may be null), resolution. */
export async function openEngine(parts) {
  const ort = await import(URL.createObjectURL(new Blob([parts.runtime], { type: "text/javascript" })));
  ort.env.wasm.wasmBinary = parts.wasm;
  ort.env.wasm.numThreads = 1; // more need headers that a file on disk has not
  ort.env.logLevel = "error";
  const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
  const generator = await ort.InferenceSession.create(parts.model, options);
  let encoder = null; // opened with the first photo
  return {
    /** Return the image of one latent [slots, dim]: {data, channels, height, width}. */
    async render(latent, slots, dim) {
      const { images } = await generator.run({ latent: new ort.Tensor("float32", latent, [1, slots, dim]) });
      const [, channels, height, width] = images.dims;
      return { data: images.data, channels, height, width };
    },
    /** Return the latent that the encoder reads off pixels [channels, side, side] in [-1, 1]. */
    async invert(pixels, channels, side) {
      encoder ??= await ort.InferenceSession.create(parts.encoder, options);
      const { latent } = await encoder.run({ image: new ort.Tensor("float32", pixels, [1, channels, side, side]) });
      return latent.data;
    },
  };
}

/** Draw an image in [-1, 1] into a canvas, pixel for pixel. */
export function paint(image, canvas) {
  const { data, channels, height, width } = image;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const size = height * width;
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = (data[i + (channels === 3 ? c : 0) * size] + 1) * 127.5;
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}

/** Return the largest centred square of a picture as pixels [channels, side, side] in [-1, 1]. */
export async function readSquare(file, side, channels) {
  const picture = await createImageBitmap(file, { imageOrientation: "from-image" });
  const crop = Math.min(picture.width, picture.height);
  const left = (picture.width - crop) / 2, top = (picture.height - crop) / 2;
  let canvas = Object.assign(document.createElement("canvas"), { width: crop, height: crop });
  let context = canvas.getContext("2d");
  context.fillStyle = "white"; // what shows through transparency
  context.fillRect(0, 0, crop, crop);
  context.drawImage(picture, left, top, crop, crop, 0, 0, crop, crop);
  while (canvas.width > side) { // by halves, so that no pixel is skipped
    const next = Math.max(side, Math.ceil(canvas.width / 2));
    const smaller = Object.assign(document.createElement("canvas"), { width: next, height: next });
    context = smaller.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(canvas, 0, 0, next, next);
    canvas = smaller;
  }
  if (canvas.width < side) {
    const larger = Object.assign(document.createElement("canvas"), { width: side, height: side });
    context = larger.getContext("2d");
    context.drawImage(canvas, 0, 0, side, side);
    canvas = larger;
  }
  const { data } = context.getImageData(0, 0, side, side);
  const size = side * side, pixels = new Float32Array(channels * size);
  for (let i = 0; i < size; i++) {
    const rgb = [0, 1, 2].map((c) => data[4 * i + c] / 127.5 - 1);
    const grey = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
    for (let c = 0; c < channels; c++) pixels[c * size + i] = channels === 1 ? grey : rgb[c];
  }
  return pixels;
}
