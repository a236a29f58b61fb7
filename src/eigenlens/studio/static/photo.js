// Photo: drop one, watch it being found, and edit it.

import { h, byId, button, complain, shown } from "./dom.js";
import { upload } from "./api.js";
import { store } from "./store.js";
import { JobBar } from "./jobs.js";

export class PhotoPage {
  constructor(place, { tabs }) {
    this.tabs = tabs;
    this.file = h("input", { type: "file", accept: "image/*", id: "photofile", class: "unseen", onchange: () => this.#take(this.file.files[0]) });
    this.steps = h("input", { type: "text", inputmode: "numeric", class: "number", value: "120", "aria-label": "Steps" });
    this.picture = h("img", { class: "pair", alt: "The photo, and the picture that stands for it", hidden: true });
    this.job = new JobBar({ stop: "Stop here, keep the best", picture: (source) => { this.picture.src = source; this.picture.hidden = false; } });
    this.said = h("div", { role: "status" });
    this.zone = h("label", { class: "zone", for: "photofile" }, this.file, h("b", {}, "Drop a photo here"), h("span", { class: "quiet" }, "or choose a file: it stays on this machine"));
    place.append(
      h("p", {}, "The code whose picture is most like the photo is sought; then every slider works on it."),
      this.zone, h("div", { class: "bar" }, h("label", {}, "Steps ", this.steps)), this.job.element, this.picture, this.said);
    for (const target of [this.zone, byId("stage")]) {
      target.addEventListener("dragover", (event) => { event.preventDefault(); this.zone.classList.add("over"); });
      target.addEventListener("dragleave", () => this.zone.classList.remove("over"));
      target.addEventListener("drop", (event) => {
        event.preventDefault();
        this.zone.classList.remove("over");
        this.#take(event.dataTransfer.files[0]);
      });
    }
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => event.preventDefault());  // a photo that misses must not replace the page
  }

  async #take(file) {
    if (!file || this.job.isBusy) return;
    this.tabs.open("photo");
    const { generator } = store.state;
    this.said.replaceChildren();
    try {
      const steps = Math.max(0, Math.min(2000, Math.trunc(Number(this.steps.value) || 0)));
      const found = await this.job.follow(await upload("/api/photo", { generator, name: file.name || "photo", steps }, file));
      if (!found || store.state.generator !== generator) return;
      const { psnr, explained } = found.figures;
      this.said.replaceChildren(
        h("p", {}, `${found.is_stopped ? "Stopped; the best so far" : "Found"}: ${shown(psnr)} dB, ${Math.round(100 * explained)} % of the way from the mean picture.`),
        ...found.notes.map((note) => h("p", { class: "warning" }, note)),
        button("Edit it", () => this.tabs.open("axes"), { class: "main" }));
      store.set({ file: found.file, index: 0, moves: [], n: 1 });
    } catch (error) {
      complain(error);
    }
    this.file.value = "";
  }
}
