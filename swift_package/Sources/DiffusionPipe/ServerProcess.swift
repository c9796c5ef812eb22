#if os(Linux) || os(macOS)
  import DiffusionCore
  import Foundation

  /// A child process and the two pipes to it. Blocks; not for the main thread.
  final class ServerProcess {
    private let process = Process()
    private let requests = Pipe()
    private let answers = Pipe()
    private var hasEnded = false

    /// - Parameter command: the program, found on the PATH if it has no slash, and its arguments.
    init(_ command: [String]) throws {
      // A server that dies must be an error here, not the end of this process.
      signal(SIGPIPE, SIG_IGN)
      process.executableURL = URL(filePath: "/usr/bin/env")
      process.arguments = command
      process.standardInput = requests
      process.standardOutput = answers
      do {
        try process.run()
      } catch {
        throw MatryoshkaError.serverFailed(reason: "\(command.first ?? "") cannot be started")
      }
    }

    deinit { end() }

    /// Sends one frame.
    func send(_ frame: [UInt8]) throws {
      do {
        try requests.fileHandleForWriting.write(contentsOf: Data(frame))
      } catch {
        throw MatryoshkaError.serverFailed(reason: "it has ended; its own message says why")
      }
    }

    /// Kind and payload of the next frame.
    func receive() throws -> (kind: UInt8, payload: [UInt8]) {
      let head = try take(4)
      let length = head.reversed().reduce(0) { $0 << 8 | Int($1) }
      guard (1...Frame.maximum).contains(length) else {
        throw MatryoshkaError.serverFailed(reason: "a frame of \(length) bytes")
      }
      let body = try take(length)
      return (body[0], Array(body[1...]))
    }

    /// Ends the child and waits until it is gone.
    func end() {
      guard !hasEnded else { return }
      hasEnded = true
      try? requests.fileHandleForWriting.close()
      try? answers.fileHandleForReading.close()
      if process.isRunning { process.terminate() }
      for _ in 0..<2000 where process.isRunning { usleep(1000) }
      if process.isRunning { kill(process.processIdentifier, SIGKILL) }
      while process.isRunning { usleep(1000) }
    }

    private func take(_ count: Int) throws -> [UInt8] {
      var bytes: [UInt8] = []
      while bytes.count < count {
        let piece = try? answers.fileHandleForReading.read(upToCount: count - bytes.count)
        guard let piece, !piece.isEmpty else {
          throw MatryoshkaError.serverFailed(reason: "it has ended; its own message says why")
        }
        bytes += piece
      }
      return bytes
    }
  }
#endif
