(function () {
  "use strict";
  document.querySelectorAll("details.jobs").forEach(function (jobs) {
    var select = jobs.querySelector("select");
    if (!select) { return; }
    var graphs = Array.prototype.slice.call(jobs.querySelectorAll(".job"));
    select.addEventListener("change", function () {
      graphs.forEach(function (graph, at) { graph.hidden = at !== Number(select.value); });
    });
  });
}());
