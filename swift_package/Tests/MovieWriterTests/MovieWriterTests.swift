#if AVFOUNDATION_SHIM
  import Foundation
  import MatryoshkaDiffusion
  import Testing

  /// The order of calls, the times and the bytes; against a fake, which writes them down.
  @Suite struct MovieWriterTests {
    private func frame(_ gray: UInt8, side: Int = 128) throws -> Picture {
      try Picture(width: side, height: side, rgb: [UInt8](repeating: gray, count: 3 * side * side))
    }

    private func temporary() -> URL {
      FileManager.default.temporaryDirectory.appending(path: "\(UUID().uuidString).mp4")
    }

    @MainActor  // as a view writes it
    @Test func everyFrameIsWrittenAtItsTime() async throws {
      let url = temporary()
      defer { try? FileManager.default.removeItem(at: url) }
      try Data("older".utf8).write(to: url)
      let clip = try Clip(frames: [frame(1), frame(1), frame(9)], fps: 8)
      var writer = try MovieWriter(url: url, fps: 8)
      try await clip.write(with: &writer)
      let file = try [UInt8](Data(contentsOf: url))
      let line = try #require(file.firstIndex(of: 10))
      #expect(String(decoding: file[..<line], as: UTF8.self) == "256 256 0/8 0/8 1/8 2/8 3/8")
      let bytes = file[(line + 1)...]
      let size = 4 * 256 * 256
      #expect(bytes.count == 3 * size)
      for (index, gray) in [UInt8(1), 1, 9].enumerated() {
        let start = bytes.startIndex + index * size
        #expect(Array(bytes[start..<start + 8]) == [gray, gray, gray, 255, gray, gray, gray, 255])
        #expect(bytes[start + size - 2] == gray)
      }
    }

    @Test func whatIsNoClipLeavesNothing() async throws {
      let url = temporary()
      #expect(throws: MatryoshkaError.self) { try MovieWriter(url: url, fps: 0) }
      let writer = try MovieWriter(url: url, fps: 8)
      await #expect(throws: MatryoshkaError.self) { try await writer.finish() }
      try await writer.append(frame(1))
      let error = await #expect(throws: MatryoshkaError.self) { try await writer.append(frame(1, side: 256)) }
      #expect(error?.code == "invalid_picture")
      #expect(!FileManager.default.fileExists(atPath: url.path))
    }

    @Test func whatIsThereStaysUntilItIsReplacedAndIfItCannotBe() async throws {
      let folder = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
      let url = folder.appending(path: "clip.mp4")
      let inside = url.appending(path: "diary.txt")
      try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
      defer { try? FileManager.default.removeItem(at: folder) }
      try Data("dear".utf8).write(to: inside)
      do {
        let writer = try MovieWriter(url: url, fps: 8)
        try await writer.append(frame(1))
        let error = await #expect(throws: MatryoshkaError.self) { try await writer.finish() }
        #expect(error?.code == "file_system")
      }
      #expect(try String(contentsOf: inside, encoding: .utf8) == "dear")
      #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == ["clip.mp4"])
    }

    @Test func aPlaceThatCannotBeWrittenIsSaid() async throws {
      let writer = try MovieWriter(url: URL(filePath: "/no/such/folder/clip.mp4"), fps: 8)
      try await writer.append(frame(1))
      let error = await #expect(throws: MatryoshkaError.self) { try await writer.finish() }
      #expect(error?.code == "file_system")
    }
  }
#endif
