// The picture itself: one canvas, small models enlarged by whole pixels, and the box that Region draws.

import { byId, h } from "./dom.js";

export class Stage extends EventTarget {
  #shown = 0;
  #last = null;     // {bitmap, about}
  #times = [];
  box = null;       // {x0, y0, x1, y1} in fractions of the first image

  constructor() {
    super();
    this.canvas = h("canvas", { role: "img", "aria-label": "The picture", width: 512, height: 512 });
    this.reading = h("output", { class: "reading", "aria-label": "Time of a frame" });
    this.mark = h("div", { class: "mark", hidden: true }, "before");
    this.outline = h("div", { class: "outline", hidden: true });
    byId("stage").append(this.canvas, this.outline, this.mark, this.reading);
    new ResizeObserver(() => this.#draw()).observe(byId("stage"));
  }

  /** Pixels that one of n tiles can show: no more is asked of the server. */
  largest(n) {
    const columns = Math.ceil(Math.sqrt(n));
    return Math.max(64, Math.ceil((byId("stage").clientWidth * devicePixelRatio) / columns));
  }

  /** Decode a picture and paint it, unless a newer one has been painted meanwhile. */
  async show({ about, picture, request }) {
    const number = about.id;
    const bitmap = await createImageBitmap(picture);
    if (number < this.#shown) return;
    if (!this.#last) performance.mark("first picture");  // benchmarks read it
    this.#shown = number;
    this.#last?.bitmap.close();
    this.#last = { bitmap, about };
    this.#draw();
    this.#clock(about.ms);
    this.canvas.dataset.frame = number;
    this.mark.hidden = !request.isBefore;
    this.dispatchEvent(new CustomEvent("painted", { detail: { about, request } }));
  }

  #draw() {
    if (!this.#last) return;
    const { bitmap, about } = this.#last;
    const columns = about.columns, rows = Math.ceil(about.n / columns);
    const tile = bitmap.width / columns;
    const room = byId("stage").clientWidth * devicePixelRatio;
    const gap = columns > 1 ? Math.round(3 * devicePixelRatio) : 0;
    const each = (room - gap * (columns - 1)) / columns;
    const scale = each >= tile ? Math.max(1, Math.floor(each / tile)) : each / tile;
    const size = Math.round(tile * scale);
    const width = size * columns + gap * (columns - 1), height = size * rows + gap * (rows - 1);
    const { canvas } = this;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d", { alpha: true });
    context.imageSmoothingEnabled = scale < 1;
    context.imageSmoothingQuality = "high";
    for (let k = 0; k < about.n; k++) {
      const column = k % columns, row = Math.floor(k / columns);
      context.drawImage(bitmap, column * tile, row * tile, tile, tile, column * (size + gap), row * (size + gap), size, size);
    }
  }

  #clock(ms) {
    const now = performance.now();
    this.#times = [...this.#times.filter((time) => now - time < 1000), now];
    const rate = this.#times.length > 5 ? ` · ${this.#times.length} fps` : "";
    this.reading.value = `${ms.toFixed(1)} ms${rate}`;
  }

  /** Let the person draw a box; gives [x0, y0, x1, y1] in fractions of the picture, or null where they gave up. */
  drawBox() {
    const { canvas, outline } = this;
    canvas.classList.add("drawing");
    return new Promise((resolve) => {
      let from = null;
      const at = (event) => {
        const place = canvas.getBoundingClientRect();
        return [(event.clientX - place.left) / place.width, (event.clientY - place.top) / place.height]
          .map((value) => Math.min(1, Math.max(0, value)));
      };
      const done = (box) => {
        canvas.classList.remove("drawing");
        canvas.onpointerdown = canvas.onpointermove = canvas.onpointerup = null;
        document.removeEventListener("keydown", escape);
        this.showBox(box);
        resolve(box);
      };
      const escape = (event) => event.key === "Escape" && done(null);
      document.addEventListener("keydown", escape);
      canvas.onpointerdown = (event) => {
        from = at(event);
        canvas.setPointerCapture(event.pointerId);
      };
      canvas.onpointermove = (event) => from && this.showBox(boxOf(from, at(event)));
      canvas.onpointerup = (event) => {
        const box = boxOf(from, at(event));
        done(box[2] - box[0] > 0.02 && box[3] - box[1] > 0.02 ? box : null);
      };
    });
  }

  /** Show a box over the picture, or none. */
  showBox(box) {
    this.outline.hidden = !box;
    if (!box) return;
    const { canvas, outline } = this;
    const [x0, y0, x1, y1] = box;
    const left = canvas.offsetLeft, top = canvas.offsetTop, width = canvas.offsetWidth, height = canvas.offsetHeight;
    outline.style.cssText = `left:${left + x0 * width}px;top:${top + y0 * height}px;width:${(x1 - x0) * width}px;height:${(y1 - y0) * height}px`;
  }
}

const boxOf = ([ax, ay], [bx, by]) => [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
