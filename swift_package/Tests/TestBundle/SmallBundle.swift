import DiffusionCore
import Foundation

/// A bundle without text, of two levels, whose packages are files of one byte: enough for a runtime
/// that computes by itself.
package struct SmallBundle: ~Copyable {
  package let url: URL
  package let bundle: BundleFolder

  package init() throws {
    url = FileManager.default.temporaryDirectory.appending(path: "small-\(UUID().uuidString)")
    var files: [(String, Data)] = [
      ("config.json", Data("{\"text\":null}".utf8)),
      ("golden.safetensors", TensorFile.contents([])),
      ("tables.safetensors", try SmallBundle.tables()),
    ]
    for name in SmallBundle.packages { files.append(("\(name).mlpackage/model", Data([1]))) }
    for (path, data) in files {
      let place = url.appending(path: path)
      try FileManager.default.createDirectory(
        at: place.deletingLastPathComponent(), withIntermediateDirectories: true)
      try data.write(to: place)
    }
    let text = SmallBundle.manifest(files)
    let digest = Manifest.digest(of: try JSON(parsing: Array(text.utf8)))
    let stamped = text.replacingOccurrences(of: String(repeating: "0", count: 64), with: digest)
    try Data(stamped.utf8).write(to: url.appending(path: "manifest.json"))
    bundle = try BundleFolder(url: url, checkingHashes: true)
  }

  deinit { try? FileManager.default.removeItem(at: url) }

  package static let packages = ["down_8", "core_4", "up_8"]

  private static func tables() throws -> Data {
    let table = (0...20).map { pow(0.001, Double($0) / 20) }
    var members: [JSON.Member] = []
    var data = Data()
    func add(_ name: String, _ type: String, _ shape: [Int], _ bytes: [UInt8]) {
      let begin = data.count
      data.append(contentsOf: bytes)
      members.append(
        JSON.Member(
          name,
          .object([
            JSON.Member("dtype", .string(type)),
            JSON.Member("shape", .array(shape.map { .number(String($0)) })),
            JSON.Member("data_offsets", .array([begin, data.count].map { .number(String($0)) })),
          ])))
    }
    let bytes = table.flatMap { value in
      (0..<8).map { UInt8(truncatingIfNeeded: value.bitPattern >> UInt64(8 * $0)) }
    }
    for name in ["alpha_bar", "alpha_bar_8", "alpha_bar_4"] { add(name, "F64", [21], bytes) }
    let rows = littleEndianBytes(of: (0..<40).map { Float($0) / 40 })
    for name in ["time_8", "time_4"] { add(name, "F32", [20, 2], rows) }
    let header = Array(JSON.object(members).canonical.utf8)
    var file = withUnsafeBytes(of: UInt64(header.count).littleEndian) { Data($0) }
    file.append(contentsOf: header)
    return file + data
  }

  private static func manifest(_ files: [(String, Data)]) -> String {
    func feature(_ name: String, _ shape: String) -> String {
      #"{"name":"\#(name)","dtype":"fp16","shape":[\#(shape)]}"#
    }
    func package(_ name: String, _ side: Int, _ inputs: [String], _ outputs: [String]) -> String {
      #"""
      {"name":"\#(name)","path":"\#(name).mlpackage","phase":"step","side":\#(side),
      "precision":"fp16","weight_bits":16,"compute":"all","bytes":1,"activation_bytes":1,
      "inputs":[\#(inputs.joined(separator: ","))],"outputs":[\#(outputs.joined(separator: ","))]}
      """#
    }
    func level(_ side: Int, _ features: String) -> String {
      #"""
      {"side":\#(side),"image":"x_\#(side)","temb":"temb_\#(side)","prediction":"prediction_\#(side)",
      "features":\#(features),"alpha_bar":"alpha_bar_\#(side)","time":"time_\#(side)",
      "target_time":null,"guidance":null,"image_scale":1.0}
      """#
    }
    let x8 = feature("x_8", "1,3,8,8")
    let x4 = feature("x_4", "1,3,4,4")
    let between = feature("features_4", "1,3,4,4")
    let hidden = feature("hidden_4", "1,3,4,4")
    let all = [
      package(packages[0], 8, [x8, feature("temb_8", "1,2")], [between]),
      package(
        packages[1], 4, [x4, feature("temb_4", "1,2"), between],
        [feature("prediction_4", "1,3,4,4"), hidden]),
      package(packages[2], 8, [x8, hidden], [feature("prediction_8", "1,3,8,8")]),
    ]
    let listed = files.map { path, data in
      #"{"path":"\#(path)","size":\#(data.count),"sha256":"\#(SHA256.hex(of: [UInt8](data)))"}"#
    }
    return #"""
      {"schema":1,"digest":"\#(String(repeating: "0", count: 64))","layout":"nested","variant":"fp16",
      "target":"iOS18","levels":[\#(level(8, "null")),\#(level(4, "\"features_4\""))],"num_steps":20,
      "alpha_bar":"alpha_bar","tables":"tables.safetensors","config":"config.json","prediction":"v",
      "threshold":"clip","guidance":"none",
      "sampler":{"kind":"ddim","steps":5,"minimum_steps":1,"maximum_steps":20},
      "student":null,"text":null,
      "packages":[\#(all.joined(separator: ","))],
      "peak_memory":{"resident":3000,"staged":2000,"minimal":1000},
      "golden":{"path":"golden.safetensors","prompts":[""],"text":null,"seed":0,"sampler":"ddim",
      "steps":1,"times":[1]},
      "provenance":{"license":"CC0","source":"tests","base_model":null,"notes":null},
      "versions":{},"created":null,"files":[\#(listed.joined(separator: ","))]}
      """#
  }
}
