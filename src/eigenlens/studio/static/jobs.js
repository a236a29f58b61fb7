// Long work on the server: a bar, a button to stop it, and what it gave.

import { h, complain } from "./dom.js";
import { get, remove } from "./api.js";

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class JobBar {
  #number = null;

  constructor({ stop = "Cancel", picture = null } = {}) {
    this.bar = h("progress", { "aria-label": "Progress", max: 1 });
    this.said = h("span", { class: "quiet", role: "status" });
    this.stop = h("button", { class: "small", onclick: () => this.cancel() }, stop);
    this.element = h("div", { class: "job", hidden: true }, this.bar, this.said, this.stop);
    this.picture = picture;
  }

  get isBusy() { return this.#number !== null; }

  cancel() {
    if (this.#number !== null) remove(`/api/jobs/${this.#number}`).catch(complain);
  }

  /** Follow a job to its end; gives its result, or null where it was cancelled. */
  async follow(job) {
    this.#number = job.id;
    this.element.hidden = false;
    let version = 0;
    try {
      for (;;) {
        if (job.total) this.bar.value = job.done / job.total;
        else this.bar.removeAttribute("value");
        const share = job.total ? `${Math.round((100 * job.done) / job.total)} %` : "";
        this.said.textContent = job.state === "waiting" ? "waiting for its turn" : [job.what, share, `${job.seconds.toFixed(0)} s`].filter(Boolean).join(" · ");
        if (this.picture && job.version > version) {
          version = job.version;
          this.picture(`/api/jobs/${job.id}/picture?${version}`);
        }
        if (job.state === "done") return job.result;
        if (job.state === "cancelled") return null;
        if (job.state === "failed") throw new Error(job.error);
        await pause(this.picture ? 150 : 250);
        job = await get(`/api/jobs/${job.id}`);
      }
    } finally {
      this.#number = null;
      this.element.hidden = true;
    }
  }
}
