// The page: a picture, the images to start from, and a slider for every direction.

import { openEngine, paint, readSquare } from "./engine.js";
import { fromHash, openHistory, toCommand, toEdit, toHash } from "./state.js";
import { withRecipe } from "./png.js";

/**
 * Build the explorer in `root`.
 * `manifest`: plain data (names, limits, shapes). `parts`: runtime, wasm, model, encoder, starts, steps.
 * `options.link`: whether the address keeps the state. `options.onEdit(edit)`: called when the Edit changes.
 */
export async function mount(root, manifest, parts, options = {}) {
  const { slots, dim, directions, count } = manifest;
  const zero = () => directions.map(() => 0);
  const first = options.link ? fromHash(location.hash, directions, count) : { start: 0, photo: null, values: zero() };
  const history = openHistory(first);
  let live = first; // what is shown: the present state, or a slider in motion
  root.classList.add("explorer");
  root.replaceChildren(...layout(manifest));
  const find = (name) => root.querySelector(`[data-part="${name}"]`);
  const canvas = find("picture"), status = find("status");

  status.textContent = "starting…";
  const engine = await openEngine(parts);
  status.textContent = "";

  // --- rendering: one picture at a time, the newest state next ---

  let busy = false, wanted = null, frames = 0;

  function latentOf(state) {
    const latent = new Float32Array(slots * dim);
    const from = state.start === "photo" ? state.photo : startCode(state.start);
    for (let i = 0; i < latent.length; i++) latent[i] = from[from.length === latent.length ? i : i % dim];
    state.values.forEach((value, k) => {
      if (!value) return;
      const step = stepOf(k);
      for (let i = 0; i < latent.length; i++) latent[i] += value * step[step.length === latent.length ? i : i % dim];
    });
    return latent;
  }
  function startCode(index) {
    const length = parts.starts.length / count;
    return parts.starts.subarray(index * length, (index + 1) * length);
  }
  function stepOf(k) {
    const length = parts.steps.length / directions.length;
    return parts.steps.subarray(k * length, (k + 1) * length);
  }

  async function show(state) {
    wanted = state;
    if (busy) return;
    busy = true;
    while (wanted) {
      const next = wanted;
      wanted = null;
      const began = performance.now();
      paint(await engine.render(latentOf(next), slots, dim), canvas);
      root.dataset.frames = ++frames;
      root.dataset.milliseconds = (performance.now() - began).toFixed(1);
      find("speed").textContent = `${Math.round(performance.now() - began)} ms`;
      await new Promise((resolve) => setTimeout(resolve)); // lets the page paint and hear the next move
    }
    busy = false;
  }

  // --- the state ---

  /** Show a state everywhere: sliders, buttons, link, picture. */
  function settle(state) {
    live = state;
    state.values.forEach((value, k) => setSlider(k, value));
    find("undo").disabled = !history.canUndo;
    find("redo").disabled = !history.canRedo;
    const edit = toEdit(state, manifest);
    find("reset").disabled = !state.values.some(Boolean);
    find("command").disabled = !edit;
    find("title").textContent = state.start === "photo" ? "your photo" : `image ${state.start}`;
    for (const each of root.querySelectorAll("[data-start]")) {
      each.setAttribute("aria-pressed", String(each.dataset.start === String(state.start)));
    }
    if (options.link) writeLink(toHash(state, directions));
    options.onEdit?.(edit);
    show(state);
  }
  function writeLink(hash) {
    try { window.history.replaceState(null, "", hash); } catch { /* some hosts forbid it; the page works without */ }
  }
  function keep(state) {
    history.keep(state);
    settle(history.now);
  }
  const withValue = (k, value) => ({ ...live, values: live.values.map((each, j) => (j === k ? value : each)) });

  // --- sliders ---

  const sliders = directions.map((_, k) => root.querySelector(`input[data-k="${k}"]`));
  const numbers = directions.map((_, k) => root.querySelector(`output[data-k="${k}"]`));

  function setSlider(k, value) {
    sliders[k].value = value;
    numbers[k].textContent = value ? `${value > 0 ? "+" : "−"}${Math.abs(value).toFixed(1)} σ` : "0";
    sliders[k].closest(".axis").classList.toggle("changed", Boolean(value));
    const { low, high } = directions[k];
    const [from, to] = [0, value].map((each) => (100 * (each - low)) / (high - low)).sort((a, b) => a - b);
    sliders[k].style.setProperty("--from", `${from}%`);
    sliders[k].style.setProperty("--to", `${to}%`);
    sliders[k].setAttribute("aria-valuetext", `${value.toFixed(1)} standard deviations`);
  }
  const stuck = (k, value) => (Math.abs(value) < (directions[k].high - directions[k].low) / 80 ? 0 : value); // a notch at 0
  sliders.forEach((slider, k) => {
    slider.addEventListener("input", () => {
      live = withValue(k, stuck(k, Number(slider.value)));
      setSlider(k, live.values[k]);
      show(live);
    });
    slider.addEventListener("change", () => keep(withValue(k, live.values[k])));
    slider.addEventListener("keydown", (event) => { // a notch would hold the arrow keys at 0
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 5, PageDown: -5 }[event.key];
      if (!step) return;
      event.preventDefault();
      const { low, high } = directions[k];
      const value = live.values[k] + (step * (high - low)) / 40;
      keep(withValue(k, Math.min(high, Math.max(low, Math.abs(value) < (high - low) / 1000 ? 0 : value))));
    });
    slider.closest(".axis").addEventListener("dblclick", () => keep(withValue(k, 0)));
  });

  // --- images to start from ---

  const start = (index) => keep({ ...live, start: index, photo: index === "photo" ? live.photo : null });
  const another = (step) => start(live.start === "photo" ? 0 : (live.start + step + count) % count);
  root.querySelectorAll("button[data-start]").forEach((each) => {
    each.addEventListener("click", () => start(Number(each.dataset.start)));
  });
  async function drawStarts() {
    for (const each of root.querySelectorAll("button[data-start]")) {
      while (busy) await new Promise((resolve) => setTimeout(resolve, 20));
      if (!root.isConnected) return;
      busy = true;
      const state = { start: Number(each.dataset.start), values: zero() };
      paint(await engine.render(latentOf(state), slots, dim), each.querySelector("canvas"));
      busy = false;
      if (wanted) show(wanted);
      await new Promise((resolve) => setTimeout(resolve));
    }
    root.dataset.starts = "drawn";
  }

  // --- a photo ---

  async function takePhoto(file) {
    if (!file) return;
    if (!manifest.encoder) {
      status.textContent = "this page takes no photos: it carries no encoder";
      return;
    }
    const { side, channels } = manifest.encoder;
    status.textContent = "reading the photo…";
    try {
      const code = await engine.invert(await readSquare(file, side, channels), channels, side);
      status.textContent = "";
      keep({ start: "photo", photo: Float32Array.from(code), values: zero() });
    } catch (error) {
      status.textContent = `this file cannot be read as a picture (${error.message ?? error})`;
    }
  }
  if (manifest.encoder) {
    const chooser = find("file");
    find("photo").addEventListener("click", () => chooser.click());
    chooser.addEventListener("change", () => { takePhoto(chooser.files[0]); chooser.value = ""; });
  }
  for (const kind of ["dragenter", "dragover"]) { // without this the browser would open the photo in place of the page
    root.addEventListener(kind, (event) => { event.preventDefault(); root.classList.toggle("over", Boolean(manifest.encoder)); });
  }
  for (const kind of ["dragleave", "drop"]) root.addEventListener(kind, () => root.classList.remove("over"));
  root.addEventListener("drop", (event) => { event.preventDefault(); takePhoto(event.dataTransfer.files[0]); });

  // --- buttons and keys ---

  const actions = {
    undo: () => settle(history.undo()),
    redo: () => settle(history.redo()),
    reset: () => keep({ ...live, values: zero() }),
    previous: () => another(-1),
    next: () => another(1),
    random: () => start(Math.floor(Math.random() * count)),
    save: download,
    command: () => copy(toCommand(toEdit(live, manifest)), "command copied"),
    theme: () => {
      const dark = getComputedStyle(root).getPropertyValue("--is-dark").trim() === "1";
      root.dataset.theme = dark ? "light" : "dark";
      if (options.link) document.documentElement.dataset.theme = root.dataset.theme;
    },
  };
  for (const [name, act] of Object.entries(actions)) find(name).addEventListener("click", act);
  const compare = find("compare");
  const before = () => { compare.setAttribute("aria-pressed", "true"); show({ ...live, values: zero() }); };
  const after = () => { compare.setAttribute("aria-pressed", "false"); show(live); };
  compare.addEventListener("pointerdown", (event) => { compare.setPointerCapture(event.pointerId); before(); });
  compare.addEventListener("pointerup", after);
  compare.addEventListener("pointercancel", after);
  compare.addEventListener("keydown", (event) => { if (event.key === " " && !event.repeat) before(); });
  compare.addEventListener("keyup", (event) => { if (event.key === " ") after(); });
  compare.addEventListener("blur", () => { if (compare.getAttribute("aria-pressed") === "true") after(); });

  const KEYS = { n: "next", p: "previous", r: "reset", s: "save", "?": "random" };
  (options.link ? document : root).addEventListener("keydown", (event) => {
    if (event.altKey || event.target.matches?.("input:not([type=range]), textarea")) return;
    const isUndo = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z";
    const name = isUndo ? (event.shiftKey ? "redo" : "undo") : !(event.ctrlKey || event.metaKey) && KEYS[event.key];
    if (!name) return;
    event.preventDefault();
    if (!find(name).disabled) actions[name]();
  });

  async function download() {
    const large = document.createElement("canvas");
    const factor = Math.max(1, Math.floor(512 / canvas.width));
    Object.assign(large, { width: canvas.width * factor, height: canvas.height * factor });
    const context = large.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(canvas, 0, 0, large.width, large.height);
    const blob = await new Promise((resolve) => large.toBlob(resolve, "image/png"));
    let bytes = new Uint8Array(await blob.arrayBuffer());
    const edit = toEdit(live, manifest);
    if (edit) bytes = withRecipe(bytes, { version: 1, edit, command: toCommand(edit) });
    const link = Object.assign(document.createElement("a"), { download: `${manifest.name}.png` });
    link.href = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }
  async function copy(text, done) {
    try {
      await navigator.clipboard.writeText(text);
      status.textContent = done;
    } catch { // without the right to the clipboard: show it to be copied by hand
      status.textContent = text;
    }
  }

  if (options.link) window.addEventListener("hashchange", () => keep(fromHash(location.hash, directions, count)));

  settle(first);
  drawStarts();
  return { get edit() { return toEdit(live, manifest); } };
}

// --- what stands on the page ---

function layout(manifest) {
  const button = (name, text, title, key) =>
    make("button", { type: "button", title: key ? `${title} (${key})` : title, "data-part": name }, text);
  const stage = make("section", { class: "stage", "aria-label": "Picture" }, [
    make("div", { class: "frame" }, [
      make("canvas", { "data-part": "picture", role: "img", "aria-label": `An image of ${manifest.name}`, width: manifest.side, height: manifest.side }),
    ]),
    make("div", { class: "panel" }, [
      make("div", { class: "line" }, [
        make("strong", { "data-part": "title" }),
        make("span", { "data-part": "speed", class: "quiet" }),
      ]),
      make("div", { class: "buttons" }, [
        button("previous", "◀", "Previous image", "P"),
        button("next", "▶", "Next image", "N"),
        button("random", "random", "Any image", "?"),
        button("compare", "compare", "Hold to see the image as it was"),
        button("undo", "undo", "Undo", "Ctrl Z"),
        button("redo", "redo", "Redo", "Ctrl Shift Z"),
        button("reset", "reset", "All sliders to 0", "R"),
        button("save", "PNG", "Download the picture", "S"),
        button("command", "command", "Copy the command that makes this picture"),
        ...(manifest.encoder
          ? [button("photo", "photo…", "Start from a photo: choose one, or drop it anywhere"), make("input", { type: "file", accept: "image/*", "data-part": "file", hidden: "" })]
          : []),
        button("theme", "◐", "Light or dark"),
      ]),
      make("p", { "data-part": "status", class: "status", role: "status" }),
    ]),
    make("details", { class: "starts", open: "" }, [
      make("summary", {}, `${manifest.count} images to start from`),
      make("div", { class: "tiles" }, Array.from({ length: manifest.count }, (_, i) =>
        make("button", { type: "button", "data-start": i, "aria-label": `image ${i}`, "aria-pressed": "false" }, [
          make("canvas", { width: manifest.side, height: manifest.side }),
        ]))),
    ]),
  ]);
  const groups = new Map();
  const faint = [];
  manifest.directions.forEach((each, k) => {
    if (each.quiet) faint.push(k);
    else groups.set(each.group, [...(groups.get(each.group) ?? []), k]);
  });
  const fields = (group, ks) =>
    make("fieldset", {}, [make("legend", {}, group), make("div", { class: "axes" }, ks.map((k) => axis(manifest.directions[k], k)))]);
  const sliders = make("section", { class: "sliders", "aria-label": "Directions" }, [
    ...[...groups].map(([group, ks]) => fields(group, ks)),
    ...(faint.length ? [make("details", {}, [make("summary", {}, `${faint.length} that change little`), fields("", faint)])] : []),
  ]);
  const head = make("header", {}, [
    make("h1", {}, manifest.title),
    make("p", { class: "quiet" }, manifest.subtitle),
  ]);
  return [head, make("main", {}, [stage, sliders])];
}

function axis(direction, k) {
  const id = `axis-${k}-${Math.random().toString(36).slice(2, 8)}`;
  const about = `${direction.name}: ${direction.low.toFixed(1)} to ${direction.high.toFixed(1)} σ` +
    (direction.effect == null ? "" : `, effect ${direction.effect.toFixed(3)}`) + ". Double-click for 0";
  return make("div", { class: "axis", title: about }, [
    make("label", { for: id }, direction.name),
    make("input", { id, type: "range", min: direction.low, max: direction.high, step: "any", value: 0, "data-k": k }),
    make("output", { for: id, "data-k": k }, "0"),
  ]);
}

function make(tag, attributes, children = []) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...(Array.isArray(children) ? children : [children]));
  return element;
}
