// The tools, one page each.

import { byId, h } from "./dom.js";

export class Tabs {
  #pages = [];

  /** Add a tool; `show` is called whenever it opens. Gives the element of its page. */
  add(id, title, show = () => {}) {
    const page = h("div", { class: "page", role: "tabpanel", id: `page-${id}`, "aria-labelledby": `tab-${id}`, hidden: true });
    const tab = h("button", { role: "tab", id: `tab-${id}`, "aria-controls": `page-${id}`, "aria-selected": "false", tabindex: "-1", onclick: () => this.open(id) }, title);
    tab.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const at = this.#pages.findIndex((each) => each.id === id);
      const next = this.#pages[(at + by + this.#pages.length) % this.#pages.length];
      this.open(next.id);
      next.tab.focus();
      event.preventDefault();
    });
    this.#pages.push({ id, tab, page, show });
    byId("tabs").append(tab);
    byId("pages").append(page);
    return page;
  }

  onShow(id, show) { this.#pages.find((each) => each.id === id).show = show; }

  open(id) {
    this.now = id;
    for (const each of this.#pages) {
      const isOpen = each.id === id;
      each.page.hidden = !isOpen;
      each.tab.setAttribute("aria-selected", String(isOpen));
      each.tab.tabIndex = isOpen ? 0 : -1;
      if (isOpen) {
        each.show();
        each.tab.scrollIntoView({ block: "nearest", inline: "nearest" });
      }
    }
  }

  openNumber(k) { if (this.#pages[k]) this.open(this.#pages[k].id); }
}
