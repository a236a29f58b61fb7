// Light or dark: as the system has it, or as the person chose.

import { byId } from "./dom.js";

export function followTheme() {
  const chosen = localStorage.getItem("eigenlens.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
  byId("theme").onclick = () => {
    const isDark = (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const next = isDark ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    localStorage.setItem("eigenlens.theme", next);
  };
}
