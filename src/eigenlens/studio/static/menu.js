// A small menu beside a button: entries that act, and other elements.

import { h } from "./dom.js";

let open = null;

/** Show entries ({text, act, reason} or elements) beside `anchor` until one acts, Escape, or a click elsewhere. */
export function openMenu(anchor, entries) {
  closeMenu();
  const menu = h("div", { class: "menu", role: "menu" }, entries.map((entry) =>
    entry instanceof Element ? entry : h("button", {
      role: "menuitem", title: entry.reason, "aria-disabled": entry.reason ? "true" : undefined,
      onclick: () => { if (!entry.reason) { closeMenu(); anchor.focus(); entry.act(); } },
    }, entry.text)));
  document.body.append(menu);
  const place = anchor.getBoundingClientRect();
  const left = Math.max(8, Math.min(place.right - menu.offsetWidth, innerWidth - menu.offsetWidth - 8));
  const below = place.bottom + 4 + menu.offsetHeight < innerHeight;
  menu.style.left = `${left}px`;
  menu.style.top = `${Math.max(8, below ? place.bottom + 4 : place.top - menu.offsetHeight - 4)}px`;
  const outside = (event) => { if (!menu.contains(event.target)) closeMenu(); };
  const key = (event) => {
    const items = [...menu.querySelectorAll("button, input")];
    const at = items.indexOf(document.activeElement);
    if (event.key === "Escape") { closeMenu(); anchor.focus(); }
    else if (event.key === "ArrowDown") items[(at + 1) % items.length]?.focus();
    else if (event.key === "ArrowUp") items[(at - 1 + items.length) % items.length]?.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  menu.addEventListener("keydown", key);
  setTimeout(() => document.addEventListener("pointerdown", outside));
  open = { menu, outside };
  (menu.querySelector("button, input") ?? menu).focus();
}

export function closeMenu() {
  if (!open) return;
  document.removeEventListener("pointerdown", open.outside);
  open.menu.remove();
  open = null;
}
