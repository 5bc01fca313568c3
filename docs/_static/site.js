// A page that was opened as a file may not fetch others: search lists titles without extracts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// The arrows of the sidebar have no text of their own.
addEventListener("DOMContentLoaded", () => document.querySelectorAll("nav summary").forEach(
  (arrow) => arrow.setAttribute("aria-label", "pages of this part")));
