// A page that was opened as a file may not fetch others: search lists titles without extracts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// The arrows of the sidebar have no text of their own.
addEventListener("DOMContentLoaded", () => document.querySelectorAll("nav summary").forEach(
  (arrow) => arrow.setAttribute("aria-label", "pages of this part")));

// A formula that scrolls in its line can be reached with the keyboard.
function reachable() {
  for (const formula of document.querySelectorAll("mjx-container"))
    if (formula.scrollWidth > formula.clientWidth) formula.setAttribute("tabindex", "0");
    else formula.removeAttribute("tabindex");
}
addEventListener("load", () => window.MathJax?.startup?.promise?.then(reachable));
addEventListener("resize", reachable);
document.addEventListener("toggle", reachable, true);       // what was folded had no width
