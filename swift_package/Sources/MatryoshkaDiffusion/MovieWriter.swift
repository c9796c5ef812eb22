#if canImport(AVFoundation) || AVFOUNDATION_SHIM
  import DiffusionCore
  import Foundation

  #if AVFOUNDATION_SHIM
    import AVFoundationShim
  #elseif canImport(AVFoundation)
    import AVFoundation
  #endif

  /// Writes an MP4 file with H.264, close to the frames but not equal to them: it plays everywhere. Frames
  /// are enlarged by repetition to 256 pixels or more, and to even sides. Checked against declarations only;
  /// not run on a Mac.
  ///
  /// The file appears in its place when it is finished, and replaces an older one in one step. Until then it has
  /// another name beside it. If writing fails, or if the writer is dropped before, an older file stays.
  public actor MovieWriter: ClipWriter {
    private let url: URL
    private let fps: Int
    private let partial: URL
    private var movie: Movie?

    /// What is being written, since the first frame.
    private struct Movie {
      let writer: AVAssetWriter
      let input: AVAssetWriterInput
      let adaptor: AVAssetWriterInputPixelBufferAdaptor
      let first: Picture
      var count = 0
    }

    /// - Parameters:
    ///   - url: of the file, which ends in .mp4 and is replaced if it exists.
    ///   - fps: frames per second, within ``Clip/rates``.
    public init(url: URL, fps: Int) throws {
      guard Clip.rates.contains(fps) else {
        throw MatryoshkaError.invalidArgument(name: "fps", reason: "expected \(Clip.rates), got \(fps)")
      }
      (self.url, self.fps) = (url, fps)
      // On the same volume, or it could not be replaced in one step.
      partial = url.deletingLastPathComponent().appending(path: ".\(UUID().uuidString).mp4")
    }

    deinit { try? FileManager.default.removeItem(at: partial) }

    /// Adds a frame. Throws a ``MatryoshkaError`` if it differs in size from the one before.
    public func append(_ frame: Picture) async throws {
      let movie = try self.movie ?? begin(frame)
      guard frame.hasSize(of: movie.first) else {
        throw MatryoshkaError.invalidPicture(
          reason: "the frame has \(frame.width) x \(frame.height) pixels, expected "
            + "\(movie.first.width) x \(movie.first.height)")
      }
      while !movie.input.isReadyForMoreMediaData {
        guard movie.writer.status == .writing else { throw failure }
        try await Task.sleep(for: .milliseconds(2))
      }
      let time = CMTime(value: CMTimeValue(movie.count), timescale: CMTimeScale(fps))
      guard movie.adaptor.append(try buffer(MovieFrame(frame), movie.adaptor), withPresentationTime: time) else {
        throw failure
      }
      self.movie?.count += 1
    }

    /// Ends the file and moves it into its place. Throws a ``MatryoshkaError``, also if there are no frames.
    public func finish() async throws {
      guard let movie, movie.count > 0 else {
        throw MatryoshkaError.invalidPicture(reason: "a clip needs one frame or more")
      }
      movie.input.markAsFinished()
      // Else the last frame would have no duration.
      movie.writer.endSession(
        atSourceTime: CMTime(value: CMTimeValue(movie.count), timescale: CMTimeScale(fps)))
      await withCheckedContinuation { done in
        movie.writer.finishWriting { done.resume() }
      }
      guard movie.writer.status == .completed else { throw failure }
      self.movie = nil
      guard rename(partial.path, url.path) == 0 else {
        let cause = String(cString: strerror(errno))
        throw MatryoshkaError.fileSystem(path: url.path, reason: "cannot be written (\(cause))")
      }
    }

    private func begin(_ first: Picture) throws -> Movie {
      let frame = MovieFrame(first)
      let writer: AVAssetWriter
      do {
        writer = try AVAssetWriter(outputURL: partial, fileType: .mp4)
      } catch {
        throw MatryoshkaError.fileSystem(path: partial.path, reason: "cannot be written (\(error.cause))")
      }
      let colors = [
        AVVideoColorPrimariesKey: AVVideoColorPrimaries_ITU_R_709_2,
        AVVideoTransferFunctionKey: AVVideoTransferFunction_ITU_R_709_2,
        AVVideoYCbCrMatrixKey: AVVideoYCbCrMatrix_ITU_R_709_2,
      ]
      let settings: [String: Any] = [
        AVVideoCodecKey: AVVideoCodecType.h264, AVVideoWidthKey: frame.width,
        AVVideoHeightKey: frame.height, AVVideoColorPropertiesKey: colors,
      ]
      let input = AVAssetWriterInput(mediaType: .video, outputSettings: settings)
      input.expectsMediaDataInRealTime = false
      let attributes: [String: Any] = [
        kCVPixelBufferPixelFormatTypeKey as String: Int(kCVPixelFormatType_32BGRA),
        kCVPixelBufferWidthKey as String: frame.width, kCVPixelBufferHeightKey as String: frame.height,
      ]
      let adaptor = AVAssetWriterInputPixelBufferAdaptor(
        assetWriterInput: input, sourcePixelBufferAttributes: attributes)
      let movie = Movie(writer: writer, input: input, adaptor: adaptor, first: first)
      self.movie = movie
      guard writer.canAdd(input) else { throw failure }
      writer.add(input)
      guard writer.startWriting() else { throw failure }
      writer.startSession(atSourceTime: CMTime(value: 0, timescale: CMTimeScale(fps)))
      return movie
    }

    private func buffer(
      _ frame: MovieFrame, _ adaptor: AVAssetWriterInputPixelBufferAdaptor
    ) throws -> CVPixelBuffer {
      var made: CVPixelBuffer?
      guard let pool = adaptor.pixelBufferPool,
        CVPixelBufferPoolCreatePixelBuffer(nil, pool, &made) == kCVReturnSuccess, let buffer = made
      else { throw failure }
      guard CVPixelBufferLockBaseAddress(buffer, []) == kCVReturnSuccess else { throw failure }
      defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
      let stride = CVPixelBufferGetBytesPerRow(buffer)
      guard let base = CVPixelBufferGetBaseAddress(buffer), stride >= 4 * frame.width,
        CVPixelBufferGetHeight(buffer) == frame.height
      else { throw failure }
      let bytes = UnsafeMutableRawBufferPointer(start: base, count: stride * frame.height)
      frame.write(to: bytes, bytesPerRow: stride)
      return buffer
    }

    private var failure: MatryoshkaError {
      let cause = movie?.writer.error?.cause ?? "the system encodes no H.264 of this size"
      return .fileSystem(path: url.path, reason: "cannot be written as a movie (\(cause))")
    }
  }
#endif
